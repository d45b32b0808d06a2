// kill -9 of the daemon at random moments of a workload that does little but promote files of the image.
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { Background, run, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { program } from '../posix/programs.ts';
import { CRASH_FILES, stressImage } from '../posix/stress.ts';
import { serveTar, wantedSubjects } from '../posix/subject.ts';

const ROUNDS = Number(process.env.FIRSTLIGHT_KILL_ROUNDS ?? 50);
/** How long a round works before it is killed, at most, from its first change on; ms. */
const MOST_MS = 150;

/** Changes that a worker told of: their numbers, in order, and how it ended. */
function told(stdout: string): { changes: number[]; end: string } {
  const lines = stdout.trim().split('\n');
  return { changes: lines.filter((line) => /^\d+$/.test(line)).map(Number), end: lines.at(-1)! };
}

if (wantedSubjects().includes('fuse')) {
  test('11.3 After kill -9 of the daemon every file is old or new, and what was done is there.', async (t) => {
    t.timeout(14 * 60_000);
    const stage = await Stage.open(t);
    await serveTar(stage, await stressImage(stage.dir), 'stress:1');
    const directory = await stage.mount('stress:1', ['--rw', 'fuse', '--wait']);
    const crash = join(directory, 'crash');
    const crasher = await program('crasher');
    let done = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const pid = await stage.daemonPid();
      const worker = new Background(crasher, ['work', crash, String(done), String(CRASH_FILES)]);
      await until('the first change', () => told(worker.stdout).changes.length > 0, { everyMs: 1 });
      const afterMs = randomInt(0, MOST_MS);
      await sleep(afterMs);
      process.kill(pid, 'SIGKILL');
      const { changes, end } = told((await worker.ended).stdout.toString());
      // It was killed while it worked, and not after its last change.
      t.regex(end, /^end E/, `round ${round}: more files are needed`);
      done = changes.at(-1)! + 1;
      await stage.must(['mount', 'stress:1', directory, '--rw', 'fuse']);
      const checked = await run(crasher, ['check', crash, String(done), String(CRASH_FILES)]);
      t.is(checked.code, 0, `round ${round}, killed after ${afterMs} ms: ${checked.stdout}`);
      if (checked.code !== 0) return;
      if (/under way: new/.test(checked.stdout.toString())) done += 1;
    }
    t.log(`${ROUNDS} kills, ${done} of ${CRASH_FILES} changes`);
    await stage.must(['umount', directory]);
    const { damaged } = await stage.json<{ damaged: string[] }>(['verify']);
    t.deepEqual(damaged, []);
  });
}
