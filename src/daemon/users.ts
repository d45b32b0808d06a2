// Who uses a directory: for the message of an unmount that is refused. Reads links below /proc only,
// which name paths without touching them.
import { readdir, readFile, readlink } from 'node:fs/promises';
import { isBelow } from './mountinfo.ts';

/** So many are named. */
const NAMED = 5;

async function uses(pid: string, directory: string): Promise<boolean> {
  const base = `/proc/${pid}`;
  // A process that ends meanwhile, or that is not ours to look at, uses nothing as far as we know.
  const fds = await readdir(`${base}/fd`).catch(() => [] as string[]);
  for (const name of ['cwd', 'root', 'exe', ...fds.map((fd) => `fd/${fd}`)]) {
    const target = await readlink(`${base}/${name}`).catch(() => '');
    // The kernel adds " (deleted)" to names that are gone; the start is what counts.
    if (target !== '' && isBelow(target, directory)) return true;
  }
  return false;
}

/** Processes with a working directory, root, program or open file below `directory`: `sh (123)`. */
export async function usersOf(directory: string): Promise<string[]> {
  const users: string[] = [];
  for (const pid of await readdir('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    if (!(await uses(pid, directory))) continue;
    const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '?');
    users.push(`${name.trim()} (${pid})`);
    if (users.length === NAMED) break;
  }
  return users;
}
