// `firstlight umount DIR`.
import type { Unmounted } from '../../daemon/control.ts';
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
  const keep = options.keep === true;
  const request = { op: 'umount', directory, lazy, ...(keep ? { keep } : {}) } as const;
  const root = context.settings.text('root');
  const dead = await isDeadMount(directory, root);
  let done: Unmounted | undefined;
  try {
    // A daemon that starts detaches what its dead predecessor left.
    done = await call<Unmounted>(context, request, { start: dead });
    if (done === undefined) {
      throw new FirstlightError('not-found', `${path} is not mounted by firstlight`, {
        hint: 'see firstlight ls',
      });
    }
  } catch (error) {
    const stillThere = dead && (await isDeadMount(directory, root));
    if (!dead || stillThere) throw error;
  }
  const kept = done?.kept ?? null;
  if (context.json) context.printJson({ directory, kept });
  else if (kept !== null) context.print(`kept as ${kept}`);
  return undefined;
}
