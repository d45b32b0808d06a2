// `firstlight umount DIR`.
import { readFileSync, statSync } from 'node:fs';
import { mountAt, parseMountInfo } from '../../daemon/mountinfo.ts';
import { FirstlightError } from '../../errors/errors.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { FS_TYPE, resolveExistingMount } from '../mount-point.ts';

/** A mount of ours that no daemon answers for any more. */
function isDead(directory: string): boolean {
  const there = mountAt(parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8')), directory);
  if (there?.fsType !== FS_TYPE) return false;
  try {
    statSync(directory);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOTCONN';
  }
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const [path = ''] = args;
  const directory = resolveExistingMount(path);
  const lazy = options.lazy === true || options.force === true;
  const request = { op: 'umount', directory, lazy } as const;
  const dead = isDead(directory);
  try {
    // A daemon that starts detaches what its dead predecessor left.
    const done = await call(context, request, { start: dead });
    if (done === undefined) {
      throw new FirstlightError('not-found', `${path} is not mounted by firstlight`, {
        hint: 'see firstlight ls',
      });
    }
  } catch (error) {
    const stillThere = dead && isDead(directory);
    if (!dead || stillThere) throw error;
  }
  if (context.json) context.printJson({ directory });
  return undefined;
}
