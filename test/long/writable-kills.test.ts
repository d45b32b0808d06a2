// kill -9 of the daemon at random moments of a workload that does little but promote files of the image.
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import test from 'ava';
import { MissedError, untilMet } from '../lib/arriving.ts';
import { Background, run, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { program } from '../posix/programs.ts';
import { CRASH_FILES, stressImage } from '../posix/stress.ts';
import { serveTar, wantedSubjects } from '../posix/subject.ts';

const ROUNDS = Number(process.env.FIRSTLIGHT_KILL_ROUNDS ?? 50);
/** Changes that a round makes before it is killed, at most; those of the time that the kill takes come to them. */
const MOST_CHANGES = 60;

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
      const wanted = randomInt(1, MOST_CHANGES + 1);
      const changes = await untilMet(t, async () => {
        const pid = await stage.daemonPid();
        const worker = new Background(crasher, ['work', crash, String(done), String(CRASH_FILES)]);
        const enough = () => told(worker.stdout).changes.length >= wanted || !worker.running;
        await until('enough changes', enough, { everyMs: 1 });
        process.kill(pid, 'SIGKILL');
        const work = told((await worker.ended).stdout.toString());
        if (work.end !== 'end') {
          t.regex(work.end, /^end E/);
          return work.changes;
        }
        // It had done all before the kill: from the image anew.
        await stage.must(['mount', 'stress:1', directory, '--rw', 'fuse']);
        await stage.must(['umount', directory]);
        await stage.must(['mount', 'stress:1', directory, '--rw', 'fuse', '--wait']);
        done = 0;
        throw new MissedError(`round ${round}: all files were changed before the kill`);
      });
      done = changes.at(-1)! + 1;
      await stage.must(['mount', 'stress:1', directory, '--rw', 'fuse']);
      const checked = await run(crasher, ['check', crash, String(done), String(CRASH_FILES)]);
      t.is(
        checked.code,
        0,
        `round ${round}, killed after ${wanted} changes or more: ${checked.stdout}`,
      );
      if (checked.code !== 0) return;
      if (/under way: new/.test(checked.stdout.toString())) done += 1;
    }
    t.log(`${ROUNDS} kills, ${done} of ${CRASH_FILES} changes`);
    await stage.must(['umount', directory]);
    const { damaged } = await stage.json<{ damaged: string[] }>(['verify']);
    t.deepEqual(damaged, []);
  });
}
