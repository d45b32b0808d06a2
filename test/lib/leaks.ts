// What a stage may leave behind: mounts below its directory, processes that carry its mark. Found by
// looking, not by remembering, so that what a crashed test or daemon forgot is found as well.
import { readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { run } from './proc.ts';

/** Environment variable that marks every process of a stage; children inherit it. */
export const STAGE_MARK = 'FIRSTLIGHT_TEST_STAGE';

/** One line of /proc/self/mountinfo (proc_pid_mountinfo(5)). */
export interface Mount {
  id: number;
  mountPoint: string;
  type: string;
  source: string;
}

/** All mounts at or below `dir`, the latest first. Does not touch them. */
export async function mountsBelow(dir: string): Promise<Mount[]> {
  // What is found here is unmounted: nothing but tests' own directories.
  if (!dir.startsWith(`${tmpdir()}/`) && !dir.startsWith('/run/firstlight/')) {
    throw new Error(`not a test directory: ${dir}`);
  }
  const mounts: Mount[] = [];
  for (const line of (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')) {
    const fields = line.split(' ');
    const dash = fields.indexOf('-');
    if (dash < 0) continue;
    const mountPoint = unescapeOctal(fields[4]!);
    if (mountPoint !== dir && !mountPoint.startsWith(`${dir}/`)) continue;
    mounts.push({
      id: Number(fields[0]),
      mountPoint,
      type: fields[dash + 1]!,
      source: unescapeOctal(fields[dash + 2]!),
    });
  }
  return mounts.reverse();
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/** Lazily unmounts everything at or below `dir`. */
export async function unmountBelow(dir: string): Promise<void> {
  for (const mount of await mountsBelow(dir)) {
    // It may have gone with its parent; what is really left is looked for afterwards.
    await run('umount', ['-l', mount.mountPoint]);
  }
}

/** A process that carries a stage's mark. */
export interface Marked {
  pid: number;
  command: string;
}

/** Processes (other than this one) whose environment names `dir` as their stage. */
export async function processesOf(dir: string): Promise<Marked[]> {
  const found: Marked[] = [];
  for (const name of await readdir('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const environment = await readOrNothing(`/proc/${name}/environ`);
    if (!environment.split('\0').includes(`${STAGE_MARK}=${dir}`)) continue;
    // A zombie has ended; only its parent has not asked yet.
    if (/^\d+ \(.*\) [ZX]/s.test(await readOrNothing(`/proc/${name}/stat`))) continue;
    const command = (await readOrNothing(`/proc/${name}/cmdline`)).replaceAll('\0', ' ').trim();
    found.push({ pid, command });
  }
  return found;
}

async function readOrNothing(path: string): Promise<string> {
  // The process may end while it is looked at.
  return readFile(path, 'latin1').catch(() => '');
}
