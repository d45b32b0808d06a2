// One random run from its image to its end: the tar that GNU tar writes of it, a server that takes it
// in, the two subjects, the comparison, and everything away again. What does not live here: what is
// drawn (model.ts).
import { lstat, mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import fc from 'fast-check';
import { must, run as runProgram } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { Interpreter } from './interpreter.ts';
import { compareRun, difference, type Excuse, type Run, runs, type Vocabulary } from './model.ts';
import type { Subject } from './script.ts';
import { closeSubject, openSubject, serveTar, unpackTar } from './subject.ts';

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

/**
 * Clause 9.9: through a descriptor of a device or fifo of the image, overlayfs' chmod copies the old file over
 * whatever has its name by then. Such calls are turned into looks.
 */
function sparing(run: Run): Run {
  const special = new Set(run.image.map((line) => /^(?:mknod|mkfifo) (\S+) /.exec(line)?.[1]));
  const opened = new Map<string, string>();
  const spare = (line: string) => {
    const [, name, path] = /^open (\S+) (\S+) /.exec(line) ?? [];
    if (name !== undefined && path !== undefined) opened.set(name, path);
    const handle = /^chmod @(\S+) /.exec(line)?.[1];
    const changed = handle === undefined ? undefined : opened.get(handle);
    return special.has(changed ?? '') ? `lstat @${handle} type,mode` : line;
  };
  return { ...run, batches: run.batches.map((batch) => batch.map(spare)) };
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
      const options = subject === 'fuse' ? ['--name', name] : [];
      const directory = await openSubject(stage, subject, tar, image, options);
      opened.push([subject, directory]);
      const interpreter = await Interpreter.start(directory);
      interpreters.push(interpreter);
      // Clause 9.1.
      if (subject === 'overlay') await interpreter.must(['lax inodes']);
    }
    const [reference, subject] = interpreters as [Interpreter, Interpreter];
    const layered = test.reference === 'overlay' || test.subject === 'overlay';
    const fair = layered ? sparing(run) : run;
    const found = await compareRun(fair, reference, subject, test.excuse);
    if (found !== undefined || test.subject !== 'fuse') return found;
    // A reference in kernel overlayfs breaks hard links: what was made is held against itself.
    const state = await subject.tree();
    await subject.close();
    return await afterwards(stage, tar, image, name, opened.at(-1)![1], state);
  } finally {
    for (const interpreter of interpreters) await interpreter.close();
    for (const [subject, directory] of opened) await closeSubject(stage, subject, directory);
    await stage.must(['gc', '--snapshots']);
    await rm(tar);
  }
}

/** Path, type and mode, owner, and number of names of a tree's line; what follows them. */
const LINE = /^([^\t]*)(\t\S+ \d+:\d+ )(\d+)( .*)$/s;

/**
 * Where in the lower directory what stands at a path of a tree's line (bytes other than printable ones as `%xx`) is
 * looked for: a directory that was renamed says in its upper one where it stood, from the root or beside.
 */
async function inLower(lower: string, upper: string, path: string): Promise<Buffer> {
  const bytes = path.replace(/%(..)/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
  let below = '';
  let above = upper;
  for (const name of bytes.split('/').filter(Boolean)) {
    above = `${above}/${name}`;
    const options = ['-h', '--only-values', '-n', 'trusted.overlay.redirect', above];
    const { code, stdout } = await runProgram('getfattr', options);
    const redirect = code === 0 ? stdout.toString() : name;
    below = redirect.startsWith('/') ? redirect : `${below}/${redirect}`;
  }
  return Buffer.from(`${lower}${below}`, 'latin1');
}

/**
 * Without an index overlayfs shows the number of names that a file has *below*, also of those that
 * are covered or gone above. Only that is taken out: the line of a file that is still below (the
 * upper directory marks every copy with its origin), is shown with just that number, and of
 * which the mount shows fewer names. Link groups are numbered anew.
 */
async function withoutCoveredNames(
  overlay: string[],
  mount: string[],
  lower: string,
  upper: string,
): Promise<string[]> {
  const names = new Map(mount.map((line) => [LINE.exec(line)?.[1], Number(LINE.exec(line)?.[3])]));
  const groups: string[] = [];
  const lines: string[] = [];
  for (const line of overlay) {
    const [, path, kind, count, rest] = LINE.exec(line) ?? [];
    const shown = names.get(path);
    if (path === undefined || shown === undefined || !(Number(count) > shown)) {
      lines.push(line);
      continue;
    }
    const below = line.includes('trusted.firstlight.origin=')
      ? undefined
      : await lstat(await inLower(lower, upper, path)).catch(() => undefined);
    const covered = below?.isDirectory() === false && below.nlink === Number(count);
    lines.push(covered ? `${path}${kind}${shown}${rest}` : line);
  }
  return lines.map((line) => {
    const group = /\t#\d+$/.exec(line)?.[0];
    if (group === undefined) return line;
    const alone = line.slice(0, -group.length);
    if (LINE.exec(line)?.[3] === '1') return alone;
    if (!groups.includes(group)) groups.push(group);
    return `${alone}\t#${groups.indexOf(group)}`;
  });
}

/**
 * Clauses 11.1 and 11.2: kernel overlayfs over the unpacked image shows the same with the upper
 * directory that a mount has left, and so does the next mount of the same name, which is left mounted.
 */
async function afterwards(
  stage: Stage,
  tar: string,
  image: string,
  name: string,
  directory: string,
  state: string[],
): Promise<string | undefined> {
  await stage.must(['umount', '--keep', directory]);
  const lower = join(stage.dir, `${name}-lower`);
  const merged = join(stage.dir, `${name}-merged`);
  await unpackTar(tar, lower);
  await mkdir(merged);
  const upper = join(stage.root, 'snapshots', name, 'upper');
  const work = join(stage.dir, `${name}-work`);
  await mkdir(work);
  const layers = `lowerdir=${lower},upperdir=${upper},workdir=${work},redirect_dir=on`;
  await must('mount', ['-t', 'overlay', 'overlay', '-o', layers, merged]);
  const seen = await treeOf(merged).finally(() => must('umount', [merged]));
  const counted = await withoutCoveredNames(seen, state, lower, upper);
  // Where a file came from, which the mount itself does not show.
  const above = counted.map((line) =>
    line.replace(/,trusted\.firstlight\.origin=\d+|trusted\.firstlight\.origin=\d+,?/, ''),
  );
  const overlay = difference(state, above);
  for (const path of [lower, merged, work]) await rm(path, { recursive: true });
  if (overlay !== undefined) return `kernel overlayfs over the same upper directory:\n${overlay}`;
  await stage.must(['mount', image, directory, '--rw', 'fuse', '--name', name]);
  const again = difference(state, await treeOf(directory));
  return again === undefined ? undefined : `after another mount of the same name:\n${again}`;
}

async function treeOf(directory: string): Promise<string[]> {
  const interpreter = await Interpreter.start(directory);
  return interpreter.tree().finally(() => interpreter.close());
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
    numRuns: FIRSTLIGHT_PATH === undefined ? trees : 1,
    // Shrinking mounts again and again: only where it is asked for, and for so long.
    ...(FIRSTLIGHT_SHRINK_S === undefined
      ? { endOnFailure: true }
      : { interruptAfterTimeLimit: Number(FIRSTLIGHT_SHRINK_S) * 1000 }),
    ...(FIRSTLIGHT_PATH === undefined ? {} : { path: FIRSTLIGHT_PATH }),
  });
  if (!result.failed) {
    t.is(result.numRuns, FIRSTLIGHT_PATH === undefined ? trees : 1);
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
