// Which programs of other systems this machine has.
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

/** Path of a program, or undefined. Daemons live where a user's PATH may not lead. */
export function findOnPath(name: string): string | undefined {
  const directories = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return directories
    .filter((directory) => directory !== '')
    .map((directory) => join(directory, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        // Not there, or not for us.
        return false;
      }
    });
}

/**
 * The runc of every system. Another one where BENCH_RUNC names it: on a busy machine the bench may run in a
 * scheduling class that a container's cgroup does not take, and a wrapper leaves it first.
 */
export const RUNC = process.env.BENCH_RUNC ?? findOnPath('runc') ?? 'runc';
