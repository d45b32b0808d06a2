// kill -9 of the daemon at random moments of a workload that does little but promote files of the image.
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { Background, run } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { program } from '../posix/programs.ts';
import { CRASH_FILES, stressImage } from '../posix/stress.ts';
import { serveTar, wantedSubjects } from '../posix/subject.ts';

const ROUNDS = Number(process.env.FIRSTLIGHT_KILL_ROUNDS ?? 50);
/** How long a round works before it is killed, at most; ms. */
const MOST_MS = 150;

if (wantedSubjects().includes('fuse')) {
  test('11.3 After kill -9 of the daemon every file is old or new, and what was done is there.', async (t) => {
    t.timeout(14 * 60_000);
    const stage = await Stage.open(t);
    await serveTar(stage, await stressImage(stage.dir), 'stress:1');
    const directory = await stage.mount('stress:1', ['--rw', 'fuse', '--wait']);
    const crash = join(directory, 'crash');
    const crasher = await program('crasher');
    let done = 0;
    let killed = 0;
    for (let round = 0; round < ROUNDS && done < CRASH_FILES; round++) {
      const worker = new Background(crasher, ['work', crash, String(done), String(CRASH_FILES)]);
      const afterMs = randomInt(1, MOST_MS);
      await sleep(afterMs);
      const pid = await stage.daemonPid();
      process.kill(pid, 'SIGKILL');
      const { stdout } = await worker.ended;
      const lines = stdout.toString().trim().split('\n');
      const finished = lines.filter((line) => /^\d+$/.test(line));
      if (finished.length > 0) done = Number(finished.at(-1)) + 1;
      killed += 1;
      await stage.must(['mount', 'stress:1', directory, '--rw', 'fuse']);
      const checked = await run(crasher, ['check', crash, String(done), String(CRASH_FILES)]);
      t.is(checked.code, 0, `round ${round}, killed after ${afterMs} ms: ${checked.stdout}`);
      if (checked.code !== 0) break;
      if (/under way: new/.test(checked.stdout.toString())) done += 1;
    }
    t.log(`${killed} kills, ${done} of ${CRASH_FILES} changes`);
    t.true(killed >= Math.min(ROUNDS, 5), 'the daemon was killed while it worked');
    await stage.must(['umount', directory]);
    const { damaged } = await stage.json<{ damaged: string[] }>(['verify']);
    t.deepEqual(damaged, []);
  });
}
