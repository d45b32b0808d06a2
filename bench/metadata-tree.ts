// The rows of bench/metadata that compare one tree through firstlight with the same tree through
// kernel overlayfs. What does not live here: time and memory of mounting (metadata-mounts.ts).
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { type Fsbench, writeList } from './lib/fsbench.ts';
import { dropCaches, takeTurns } from './lib/measure.ts';
import type { RowWriter } from './lib/rows.ts';
import type { Workspace } from './lib/workspace.ts';

/** The same tree, several times. */
export interface Sides {
  /** As GNU tar unpacked it, on the disk. */
  lower: string;
  /** Kernel overlayfs over `lower`: what containers run on today. */
  baseline: string;
  /** firstlight, `--rw off`: the FUSE mount itself. */
  off: string;
  /** firstlight in other ways, by what is put behind the row identifiers. */
  others: Record<string, string>;
}

/** One tree to measure. */
export interface TreeToMeasure {
  /** Put before the row identifiers. */
  prefix: string;
  sides: Sides;
  /** How many names a walk must see, the root included; unchecked where absent. */
  entries?: number;
  /** Path of a large file for sequential reads, and its content file in the store; not measured where absent. */
  largeFile?: string;
  largeContent?: string;
}

const BASELINE = 'overlayfs';
/** Files of the warm set: what a service opens again and again. */
const WARM_FILES = 400;
/** Files of the wide set: far more than any cache of open files holds. */
const MANY_FILES = 20_000;

/** Every `step`th regular file of at most 64 KiB, so that the sample is spread over the tree. */
function sampleFiles(lower: string, count: number): string[] {
  const found = execFileSync('find', ['.', '-type', 'f', '-size', '-65', '-printf', '%P\\0'], {
    cwd: lower,
    encoding: 'latin1',
    maxBuffer: 1 << 30,
  });
  const all = found.split('\0').slice(0, -1).sort();
  const step = Math.max(1, Math.floor(all.length / count));
  return all.filter((_, i) => i % step === 0).slice(0, count);
}

/** What each side took, by its name: `baseline`, `off`, or that of another way. */
type Seen = Record<string, number>;

/** One measurement of every side, taking turns. */
function onAllSides(
  rounds: number,
  { baseline, off, others }: Sides,
  measure: (root: string) => Promise<number>,
): Promise<Seen> {
  const roots = Object.entries({ baseline, off, ...others });
  return takeTurns(
    rounds,
    Object.fromEntries(roots.map(([name, root]) => [name, () => measure(root)])),
  );
}

/** The timed side and its siblings against overlayfs; `value` is in `unit`. */
function addRows(rows: RowWriter, id: string, unit: string, seen: Seen, budget: number): void {
  const { baseline: value = 0, off = 0, ...others } = seen;
  const baseline = { name: BASELINE, value };
  rows.add({ row: id, value: off, unit, baseline, better: 'lower', budget });
  for (const [name, other] of Object.entries(others)) {
    rows.add({ row: `${id}-${name}`, value: other, unit, baseline, better: 'lower' });
  }
}

async function measureWalk(rows: RowWriter, fsbench: Fsbench, tree: TreeToMeasure): Promise<void> {
  const walk = async (what: 'dentries' | 'all', root: string): Promise<number> => {
    await dropCaches(what);
    const { names, ms } = await fsbench.walk(root);
    if (tree.entries !== undefined && names !== tree.entries - 1) {
      throw new Error(`the walk of ${root} saw ${names} names, not ${tree.entries - 1}`);
    }
    return ms;
  };
  const turns = (what: 'dentries' | 'all', rounds: number) =>
    onAllSides(rounds, tree.sides, (root) => walk(what, root));
  addRows(rows, `${tree.prefix}walk-cold`, 'ms', await turns('dentries', 5), 3);
  const { off = 0, baseline = 0 } = await turns('all', 3);
  rows.add({
    row: `${tree.prefix}walk-cold-disk`,
    value: off,
    unit: 'ms',
    baseline: { name: BASELINE, value: baseline },
    better: 'lower',
  });
}

async function measureLarge(
  rows: RowWriter,
  fsbench: Fsbench,
  tree: TreeToMeasure,
  file: string,
  content: string,
): Promise<void> {
  const {
    baseline: value = 0,
    off = 0,
    ...others
  } = await onAllSides(7, tree.sides, (root) =>
    fsbench.read(root === tree.sides.baseline ? content : join(root, file), 2),
  );
  const baseline = { name: 'content file', value };
  const id = `${tree.prefix}read-large`;
  rows.add({ row: id, value: off, unit: 'MB/s', baseline, better: 'higher', budget: 0.95 });
  for (const [name, other] of Object.entries(others)) {
    rows.add({ row: `${id}-${name}`, value: other, unit: 'MB/s', baseline, better: 'higher' });
  }
}

/** Measures one tree and adds its rows. */
export async function measureTree(
  space: Workspace,
  rows: RowWriter,
  fsbench: Fsbench,
  tree: TreeToMeasure,
): Promise<void> {
  const { lower } = tree.sides;
  const many = join(space.directory, `${tree.prefix}many.list`);
  const warm = join(space.directory, `${tree.prefix}warm.list`);
  writeList(many, sampleFiles(lower, MANY_FILES));
  writeList(warm, sampleFiles(lower, WARM_FILES));

  const loops = (loop: 'lstat' | 'open', list: string, passes: number, rounds: number) =>
    onAllSides(rounds, tree.sides, (root) => fsbench[loop](root, list, passes));
  addRows(rows, `${tree.prefix}lstat-cached`, 'ns', await loops('lstat', many, 5, 9), 1);
  addRows(rows, `${tree.prefix}open-read-close`, 'ns', await loops('open', warm, 10, 9), 6);
  addRows(rows, `${tree.prefix}open-read-close-many`, 'ns', await loops('open', many, 1, 3), 6);
  if (tree.largeFile !== undefined && tree.largeContent !== undefined) {
    await measureLarge(rows, fsbench, tree, tree.largeFile, tree.largeContent);
  }
  await measureWalk(rows, fsbench, tree);
}
