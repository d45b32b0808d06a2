// Random operations on two subjects that began as the same image; every answer and then the whole
// state must be equal. What does not live here: where the two come from (writable-model tests).
import fc from 'fast-check';
import type { Interpreter } from './interpreter.ts';

/** What a run draws from. */
export interface Vocabulary {
  /**
   * Names are drawn from three letters, so that they collide. Kernel overlayfs cannot rename a
   * directory of its lower layer: against it directories have letters of their own and stay.
   */
  directoriesMove: boolean;
  /** Hard links in the image; kernel overlayfs breaks them. */
  linksInImage: boolean;
  /** Operations that only layered filesystems know: whiteouts, their xattrs. */
  layered: boolean;
}

/** One tree and what is done to it. */
export interface Run {
  /** Commands that make the image's tree. */
  image: string[];
  /** Commands of each batch; after a batch the whole state is compared. */
  batches: string[][];
}

const HANDLES = ['h', 'i', 'j'];
const MODES = ['0644', '0755', '0600', '0777', '4755', '2755', '1777', '0000', '0444'];
/** Never above the root: both sides have a directory of their own below one parent. */
const TARGETS = ['a', 'A/b', 'b/c', './c', 'xyz'];
/** For what is open already: clause 10.5. */
const PLAIN_MODES = MODES.filter((mode) => !/^[46]|^2/.test(mode));
const TIMES = ['1', '999999999.999999999', '-5', '500000000.5'];
const SIZES = [0, 1, 5, 4095, 4096, 4097, 20_000, 70_000];
// A fifo must not make the interpreter wait for another end.
const OPENS = ['w,creat', 'rw', 'w,creat,excl', 'rw,append', 'w,creat,trunc', 'rw,trunc'].map(
  (flags) => `${flags},nonblock`,
);
const ATTRIBUTES = ['user.a', 'user.b', 'trusted.c'];

const letters = fc.constantFrom('a', 'b', 'c');
const oneOf = <T>(values: readonly T[]) => fc.constantFrom(...values);

function names(vocabulary: Vocabulary) {
  const inner = vocabulary.directoriesMove ? letters : fc.constantFrom('A', 'B', 'C');
  const parents = fc.array(inner, { maxLength: 2 });
  const join = (parts: string[]) => parts.join('/');
  const below = fc.tuple(parents, letters).map(([path, leaf]) => join([...path, leaf]));
  const directory = fc.tuple(parents, inner).map(([path, leaf]) => join([...path, leaf]));
  const any = vocabulary.directoriesMove ? below : fc.oneof(below, directory);
  return { leaf: below, directory, any };
}

const seed = fc.integer({ min: 1, max: 999 });
const size = oneOf(SIZES);
const data = fc.tuple(seed, size).map(([from, bytes]) => `${from}*${bytes}`);
const mode = oneOf(MODES);
const id = oneOf(['0', '1000', '65534']);

/** Commands that make a tree; the times are those of the tar. */
function making(vocabulary: Vocabulary): fc.Arbitrary<string> {
  const { leaf, directory, any } = names(vocabulary);
  const line = (...parts: (string | fc.Arbitrary<string>)[]) =>
    fc
      .tuple(...parts.map((part) => (typeof part === 'string' ? fc.constant(part) : part)))
      .map((words) => words.join(' '));
  const weighted: fc.WeightedArbitrary<string>[] = [
    { weight: 8, arbitrary: line('mkdir', directory, oneOf(['0755', '0700', '1777', '2775'])) },
    { weight: 8, arbitrary: line('put', leaf, 'w,creat,nonblock', data) },
    {
      weight: 1,
      arbitrary: line('put', leaf, 'w,creat,nonblock', data, oneOf(['100000', '1000000'])),
    },
    { weight: 2, arbitrary: line('symlink', oneOf(TARGETS), leaf) },
    { weight: 1, arbitrary: line('mkfifo', leaf, oneOf(['0644', '0600'])) },
    {
      weight: 1,
      arbitrary: line('mknod', leaf, 'c', oneOf(['0600', '0666']), '1', oneOf('357'.split(''))),
    },
    { weight: 2, arbitrary: line('chown', any, id, id, 'nofollow') },
    { weight: 2, arbitrary: line('chmod', any, mode) },
    { weight: 2, arbitrary: line('setxattr', any, oneOf(ATTRIBUTES), data.map(short)) },
  ];
  if (vocabulary.linksInImage) weighted.push({ weight: 3, arbitrary: line('link', leaf, leaf) });
  return fc.oneof(...weighted);
}

function short(text: string): string {
  return `${text.split('*')[0]}*24`;
}

/** Commands on what is there. */
function changing(vocabulary: Vocabulary): fc.Arbitrary<string> {
  const { leaf, directory, any } = names(vocabulary);
  const line = (...parts: (string | fc.Arbitrary<string>)[]) =>
    fc
      .tuple(...parts.map((part) => (typeof part === 'string' ? fc.constant(part) : part)))
      .map((words) => words.filter((word) => word !== '').join(' '));
  const handle = oneOf(HANDLES);
  const at = oneOf(['0', '1', '4096', '70000', '100001']);
  const moved = vocabulary.directoriesMove ? any : leaf;
  const count = size.map(String);
  const weighted: [number, fc.Arbitrary<string>][] = [
    [6, line('mkdir', directory, oneOf(['0755', '0700', '2775']))],
    [4, line('rmdir', directory)],
    [8, line('unlink', leaf)],
    [8, line('rename', moved, moved, oneOf(['', '', '', 'noreplace', 'exchange']))],
    [6, line('put', leaf, oneOf(OPENS), data)],
    [3, line('put', leaf, oneOf(OPENS.slice(0, 2)), data, at)],
    [2, line('symlink', oneOf(TARGETS), leaf)],
    [1, line('mkfifo', leaf, '0644')],
    [1, line('mknod', leaf, 'c', '0640', '1', oneOf('357'.split('')))],
    [1, line('mknod', leaf, oneOf('sf'.split('')), '0640')],
    [4, line('chmod', any, oneOf(PLAIN_MODES))],
    [
      3,
      line(
        'chown',
        any,
        oneOf(['-1', '0', '1000']),
        oneOf(['-1', '0', '2000']),
        oneOf(['', 'nofollow']),
      ),
    ],
    [3, line('utimes', any, 'omit', oneOf(TIMES), 'nofollow')],
    [3, line('truncate', leaf, count)],
    [
      3,
      line(
        'setxattr',
        any,
        oneOf(ATTRIBUTES),
        data.map(short),
        oneOf(['', '', 'create', 'replace']),
      ),
    ],
    [2, line('removexattr', any, oneOf(ATTRIBUTES))],
    [1, line('setacl', any, 'access', oneOf(['u::7,u:1000:6,g::5,m::7,o::0', 'u::6,g::4,o::4']))],
    [1, line('setacl', directory, 'default', oneOf(['u::7,u:1000:7,g::5,m::7,o::0']))],
    [5, line('open', handle, leaf, oneOf(OPENS))],
    [1, line('open', handle, directory, 'rw,tmpfile', '0640')],
    [4, line('write', handle, data, at)],
    [4, line('read', handle, count, at)],
    [
      2,
      line(
        'truncate',
        handle.map((h) => `@${h}`),
        count,
      ),
    ],
    [
      1,
      line(
        'chmod',
        handle.map((h) => `@${h}`),
        oneOf(PLAIN_MODES),
      ),
    ],
    [
      1,
      line(
        'fallocate',
        handle,
        oneOf(['plain', 'punch', 'zero', 'keep']),
        at,
        oneOf(['1', '4096', '30000']),
      ),
    ],
    [
      1,
      line(
        'lstat',
        handle.map((h) => `@${h}`),
        'type,mode,uid,gid,size',
      ),
    ],
    [1, line('sync', handle)],
    // A reader that stays: what it reads after a change may be the old content (clause 10.3).
    [3, line('open', 'reader', leaf, 'r,nonblock')],
    [1, line('read', 'reader', count, at)],
    [1, line('lstat', '@reader', 'type,mode,uid,gid')],
    [1, line('close', 'reader')],
    [2, line('close', handle)],
    [4, line('lstat', any, 'type,mode,uid,gid,mtime').map(undated)],
    [3, line('list', directory)],
    [2, line('getxattr', any, oneOf(ATTRIBUTES))],
    [1, line('listxattr', any)],
    [1, line('readlink', leaf)],
    [
      1,
      oneOf(['as 1000 1000', 'as 65534 65534 1000', 'as 0 0', 'as 0 0', 'umask 027', 'umask 022']),
    ],
  ];
  if (vocabulary.directoriesMove) {
    weighted.push([4, line('link', leaf, leaf)]);
    weighted.push([
      1,
      line(
        'link',
        handle.map((h) => `@${h}`),
        leaf,
      ),
    ]);
    weighted.push([1, line('copyrange', handle, at, handle, at, oneOf(['1', '5000', '80000']))]);
  }
  if (vocabulary.layered) {
    weighted.push([1, line('mknod', leaf, 'c', '0644', '0', '0')]);
    weighted.push([1, line('rename', leaf, leaf, 'whiteout')]);
    weighted.push([
      1,
      line('setxattr', any, oneOf(['trusted.overlay.opaque', 'trusted.overlay.x']), '=y'),
    ]);
    weighted.push([1, line('getxattr', any, 'trusted.overlay.opaque')]);
  }
  return fc.oneof(...weighted.map(([weight, arbitrary]) => ({ weight, arbitrary })));
}

/** The state shows times as the clock lets it (tree.c); an answer of lstat would show the clock. */
function undated(command: string): string {
  return command.replace(',mtime', '');
}

/** Runs of so many operations each. */
export function runs(
  vocabulary: Vocabulary,
  sizes: { image: number; batches: number; batch: number },
): fc.Arbitrary<Run> {
  const { image, batches, batch } = sizes;
  return fc.record({
    image: fc.array(making(vocabulary), { minLength: image >> 1, maxLength: image, size: 'max' }),
    batches: fc.array(
      fc.array(changing(vocabulary), { minLength: batch, maxLength: batch, size: 'max' }),
      { minLength: batches, maxLength: batches, size: 'max' },
    ),
  });
}

/** Answers that differ by a clause of docs/SEMANTICS.md. */
export type Excuse = (command: string, reference: string, answer: string) => boolean;

/**
 * Applies a run to both.
 * @returns what differed first, with the commands that led to it; undefined where nothing did
 */
export async function compareRun(
  run: Run,
  reference: Interpreter,
  subject: Interpreter,
  excuse: Excuse = () => false,
): Promise<string | undefined> {
  const first = difference(await reference.tree(), await subject.tree());
  if (first !== undefined) return `before the first operation: ${first}`;
  const done: string[] = [];
  for (const batch of run.batches) {
    const [wanted, got] = await Promise.all([reference.run(batch), subject.run(batch)]);
    for (const [i, command] of batch.entries()) {
      done.push(`${command} -> ${wanted[i]}`);
      if (wanted[i] === got[i] || excuse(command, wanted[i]!, got[i]!)) continue;
      return [...done, `  but the subject says ${got[i]}`].join('\n');
    }
    await Promise.all([reference.must(['as 0 0']), subject.must(['as 0 0'])]);
    const [left, right] = await Promise.all([reference.tree(), subject.tree()]);
    const found = difference(left, right);
    if (found !== undefined) return [...done, found].join('\n');
  }
  return undefined;
}

/** Lines of two trees that are not in both; undefined where all are. */
export function difference(reference: string[], subject: string[]): string | undefined {
  const wanted = new Set(reference);
  const seen = new Set(subject);
  const lines = [
    ...reference.filter((line) => !seen.has(line)).map((line) => `- ${line}`),
    ...subject.filter((line) => !wanted.has(line)).map((line) => `+ ${line}`),
  ];
  return lines.length === 0 ? undefined : lines.slice(0, 30).join('\n');
}
