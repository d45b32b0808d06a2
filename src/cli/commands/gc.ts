// `firstlight gc`.
import type { GcResult } from '../../daemon/control.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { formatBytes } from '../print.ts';

export async function run(
  context: Context,
  _args: string[],
  options: OptionValues,
): Promise<undefined> {
  const removed = await call<GcResult>(context, { op: 'gc', all: options.all === true });
  if (context.json) context.printJson(removed);
  else if (removed !== undefined) {
    context.print(
      `removed ${removed.contents} contents (${formatBytes(removed.bytes)}), ${removed.images} images`,
    );
  }
  return undefined;
}
