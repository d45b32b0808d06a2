// One random run from its image to its end: the tar that GNU tar writes of it, a server that takes it
// in, the two subjects, the comparison, and everything away again. What does not live here: what is
// drawn (model.ts).
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import fc from 'fast-check';
import { must } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { Interpreter } from './interpreter.ts';
import { compareRun, type Excuse, type Run, runs, type Vocabulary } from './model.ts';
import type { Subject } from './script.ts';
import { closeSubject, openSubject, serveTar } from './subject.ts';

/** What is compared with what, and how much. */
export interface ModelTest {
  reference: Subject;
  subject: Subject;
  vocabulary: Vocabulary;
  trees: number;
  /** Operations that make a tree at most, batches a tree, operations a batch. */
  sizes: { image: number; batches: number; batch: number };
  excuse?: Excuse;
}

/** A time that a double holds: the root of an overlay gets its own as one (clause 9.7). */
const OLD = '@900000000.5';

async function imageTar(stage: Stage, name: string, commands: string[]): Promise<string> {
  const root = join(stage.dir, `${name}-made`);
  await mkdir(root);
  const interpreter = await Interpreter.start(root);
  try {
    // What cannot be made, because of what is there, is left out.
    await interpreter.run(commands);
  } finally {
    await interpreter.close();
  }
  const tar = join(stage.dir, `${name}.tar`);
  const options = ['--format=pax', '--numeric-owner', '--sort=name', '--xattrs', '--sparse'];
  await must('tar', [
    ...['-C', root, ...options, '--xattrs-include=*', `--mtime=${OLD}`],
    ...['-cf', tar, '.'],
  ]);
  await rm(root, { recursive: true });
  return tar;
}

async function oneRun(
  stage: Stage,
  test: ModelTest,
  run: Run,
  name: string,
): Promise<string | undefined> {
  const tar = await imageTar(stage, name, run.image);
  const image = `${name}:1`;
  await serveTar(stage, tar, image);
  const opened: [Subject, string][] = [];
  const interpreters: Interpreter[] = [];
  try {
    for (const subject of [test.reference, test.subject]) {
      const directory = await openSubject(stage, subject, tar, image);
      opened.push([subject, directory]);
      const interpreter = await Interpreter.start(directory);
      interpreters.push(interpreter);
      // Clause 9.1.
      if (subject === 'overlay') await interpreter.must(['lax inodes']);
    }
    return await compareRun(run, interpreters[0]!, interpreters[1]!, test.excuse);
  } finally {
    for (const interpreter of interpreters) await interpreter.close();
    for (const [subject, directory] of opened) await closeSubject(stage, subject, directory);
    await rm(tar);
  }
}

/**
 * Runs a model test. FIRSTLIGHT_SEED repeats one, with FIRSTLIGHT_PATH the one run that failed;
 * FIRSTLIGHT_SHRINK_S looks for a smaller one for so many seconds. FIRSTLIGHT_MODEL_TREES makes it longer or shorter.
 */
export async function modelTest(t: ExecutionContext<unknown>, test: ModelTest): Promise<void> {
  const stage = await Stage.open(t);
  const { FIRSTLIGHT_SEED, FIRSTLIGHT_PATH, FIRSTLIGHT_SHRINK_S, FIRSTLIGHT_MODEL_TREES } =
    process.env;
  const trees = Number(FIRSTLIGHT_MODEL_TREES ?? test.trees);
  const seed = Number(FIRSTLIGHT_SEED ?? Math.floor(Math.random() * 2 ** 31));
  const { batches, batch } = test.sizes;
  t.log(
    `${test.subject} against ${test.reference}, seed ${seed}: ${trees * batches * batch} operations on ${trees} trees`,
  );
  let number = 0;
  const property = fc.asyncProperty(runs(test.vocabulary, test.sizes), async (run) => {
    number += 1;
    const found = await oneRun(stage, test, run, `tree${number}`);
    if (found !== undefined) throw new Error(found);
  });
  const result = await fc.check(property, {
    seed,
    numRuns: trees,
    // Shrinking mounts again and again: only where it is asked for, and for so long.
    ...(FIRSTLIGHT_SHRINK_S === undefined
      ? { endOnFailure: true }
      : { interruptAfterTimeLimit: Number(FIRSTLIGHT_SHRINK_S) * 1000 }),
    ...(FIRSTLIGHT_PATH === undefined ? {} : { path: FIRSTLIGHT_PATH }),
  });
  if (!result.failed) {
    t.is(result.numRuns, trees);
    return;
  }
  const image = result.counterexample?.[0].image.join('\n') ?? '';
  const path = result.counterexamplePath ?? '';
  t.fail(
    [
      `FIRSTLIGHT_SEED=${seed} FIRSTLIGHT_PATH=${path}, after ${result.numShrinks} shrinks`,
      'the image:',
      image,
      'then:',
      String(result.errorInstance),
    ].join('\n'),
  );
}
