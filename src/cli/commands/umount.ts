// `firstlight umount DIR`.
import { FirstlightError } from '../../errors/errors.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { isDeadMount, resolveExistingMount } from '../mount-point.ts';

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const [path = ''] = args;
  const directory = resolveExistingMount(path);
  const lazy = options.lazy === true || options.force === true;
  const request = { op: 'umount', directory, lazy } as const;
  const root = context.settings.text('root');
  const dead = isDeadMount(directory, root);
  try {
    // A daemon that starts detaches what its dead predecessor left.
    const done = await call(context, request, { start: dead });
    if (done === undefined) {
      throw new FirstlightError('not-found', `${path} is not mounted by firstlight`, {
        hint: 'see firstlight ls',
      });
    }
  } catch (error) {
    const stillThere = dead && isDeadMount(directory, root);
    if (!dead || stillThere) throw error;
  }
  if (context.json) context.printJson({ directory });
  return undefined;
}
