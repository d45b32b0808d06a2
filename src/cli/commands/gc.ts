// `firstlight gc`.
import type { GcResult } from '../../daemon/control.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { formatBytes } from '../print.ts';

const counted = (n: number, what: string) => `${n} ${what}${n === 1 ? '' : 's'}`;

export async function run(
  context: Context,
  _args: string[],
  options: OptionValues,
): Promise<undefined> {
  const removed = await call<GcResult>(context, {
    op: 'gc',
    all: options.all === true,
    snapshots: options.snapshots === true,
  });
  if (context.json) context.printJson(removed);
  else if (removed !== undefined) {
    context.print(
      `removed ${counted(removed.contents, 'content')} (${formatBytes(removed.bytes)}), ${counted(removed.images, 'image')}, changes of ${counted(removed.snapshots, 'mount')}`,
    );
  }
  return undefined;
}
