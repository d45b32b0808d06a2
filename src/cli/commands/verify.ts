// `firstlight verify`: every content is read again.
import type { VerifyResult } from '../../daemon/control.ts';
import { FirstlightError } from '../../errors/errors.ts';
import { call } from '../client.ts';
import type { Context } from '../context.ts';

export async function run(context: Context): Promise<undefined> {
  const found = await call<VerifyResult>(context, { op: 'verify' });
  if (found === undefined) return undefined;
  if (context.json) context.printJson(found);
  else {
    for (const digest of found.damaged) context.print(`damaged  ${digest}`);
    for (const digest of found.missing) context.print(`missing  ${digest}`);
    for (const digest of found.damagedImages) context.print(`damaged image  ${digest}`);
    context.print(`${found.contents} contents checked`);
  }
  const bad = found.damaged.length + found.missing.length + found.damagedImages.length;
  if (bad > 0) {
    throw new FirstlightError('corrupt', `${bad} of the things checked are damaged or missing`, {
      hint: 'contents are fetched again at the next mount of their images; check the disk',
    });
  }
  return undefined;
}
