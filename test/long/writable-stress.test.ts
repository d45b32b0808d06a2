// Random input and output on files of the image and new ones, and threads that race: on writable mounts
// and on a plain directory, which shows that the programs ask for nothing special.
import { join } from 'node:path';
import test from 'ava';
import { run } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { program } from '../posix/programs.ts';
import { EXERCISED_FILES, RACE_DIRECTORIES, seedOfRun, stressImage } from '../posix/stress.ts';
import { closeSubject, openSubject, serveTar, wantedSubjects } from '../posix/subject.ts';

const stepsOf = (subject: string) => (subject === 'fuse' ? 4000 : 1000);
/** The others are not what is tested. */
const secondsOf = (subject: string) => (subject === 'fuse' ? 60 : 5);

for (const subject of wantedSubjects()) {
  test(`${subject}: 7.13 Random reads, writes, mappings, holes and truncations give what memory would.`, async (t) => {
    const stage = await Stage.open(t);
    const tar = await stressImage(stage.dir);
    await serveTar(stage, tar, 'stress:1');
    const directory = await openSubject(stage, subject, tar, 'stress:1');
    const exerciser = await program('exerciser');
    for (const file of EXERCISED_FILES) {
      const seed = seedOfRun();
      const args = [join(directory, file), String(seed), String(stepsOf(subject))];
      const { code, stdout } = await run(exerciser, args, { timeoutMs: 600_000 });
      t.is(code, 0, `${file}, FIRSTLIGHT_SEED=${seed}: ${stdout}`);
    }
    await closeSubject(stage, subject, directory);
  });

  test(`${subject}: 10.2 Threads that look race with threads that change, and no stale node is left.`, async (t) => {
    const stage = await Stage.open(t);
    const tar = await stressImage(stage.dir);
    await serveTar(stage, tar, 'stress:1');
    const directory = await openSubject(stage, subject, tar, 'stress:1');
    const seconds = secondsOf(subject);
    const seed = seedOfRun();
    const { code, stdout } = await run(
      await program('racer'),
      [join(directory, 'race'), String(RACE_DIRECTORIES), String(seconds), String(seed)],
      { timeoutMs: seconds * 1000 + 600_000 },
    );
    t.is(code, 0, `FIRSTLIGHT_SEED=${seed}: ${stdout}`);
    t.log(`${subject}: ${stdout.toString().trim()}, seed ${seed}`);
    await closeSubject(stage, subject, directory);
  });
}
