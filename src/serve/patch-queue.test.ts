// How many computations of patches wait, in which order they run, and for how long they are wanted.
import test from 'ava';
import { PatchQueue } from './patch-queue.ts';

/** A queue, and computations by name that end when they are told to. */
function makeQueue(most: number) {
  const seen = { started: [] as string[], refused: 0 };
  const queue = new PatchQueue(most, () => seen.refused++);
  const ends = new Map<string, () => void>();
  const make = (name: string) => () => {
    seen.started.push(name);
    return new Promise<undefined>((resolve) => ends.set(name, () => resolve(undefined)));
  };
  const want = (name: string, gone?: AbortSignal) => queue.want(name, make(name), gone);
  const ahead = (name: string) => queue.ahead(name, make(name));
  /** Ends the one that runs, and has the next begin. */
  const end = async (name: string) => {
    ends.get(name)!();
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { queue, seen, want, ahead, end };
}

test('one at a time, what was asked for first, and no more waiting than may be', async (t) => {
  const { queue, seen, want, ahead, end } = makeQueue(2);
  const all = [want('a'), ahead('ahead'), want('b')];
  t.is(queue.waiting, 3);
  t.is(await want('c'), undefined);
  t.is(seen.refused, 1);
  // What waits already, and what is computed ahead, has its place.
  all.push(want('b'), ahead('another'));
  t.is(seen.refused, 1);
  await end('a');
  t.deepEqual(seen.started, ['a', 'b']);
  for (const name of ['b', 'ahead', 'another']) await end(name);
  await Promise.all(all);
  t.deepEqual(seen.started, ['a', 'b', 'ahead', 'another']);
  t.is(queue.waiting, 0);
});

test('what waits to be computed ahead has its turn with the others when somebody wants it', async (t) => {
  const { seen, want, ahead, end } = makeQueue(10);
  for (const name of ['first', 'second', 'third']) void ahead(name);
  void want('a');
  void want('third');
  void want('b');
  for (const name of ['first', 'a', 'third', 'b', 'second']) await end(name);
  t.deepEqual(seen.started, ['first', 'a', 'third', 'b', 'second']);
});

test('where the last who wanted it has gone it waits no more, unless its turn has come', async (t) => {
  const { queue, seen, want, end } = makeQueue(2);
  const gone = Array.from({ length: 3 }, () => new AbortController());
  const [one, two, three] = gone.map(({ signal }) => signal);
  const running = want('running', one);
  const left = want('left', one);
  void want('left', two);
  void want('stays', two);
  void want('stays', three);
  gone[0]!.abort();
  t.is(queue.waiting, 3);
  gone[1]!.abort();
  t.is(await left, undefined);
  t.is(queue.waiting, 2);
  // Its place is free again, and it may be asked for anew.
  void want('left', three);
  t.is(seen.refused, 0);
  for (const name of ['running', 'stays', 'left']) await end(name);
  await running;
  t.deepEqual(seen.started, ['running', 'stays', 'left']);
  t.is(queue.waiting, 0);
});

test('one that is asked for anew in the turn in which it was given up is another', async (t) => {
  const { queue, want, end } = makeQueue(9);
  void want('running');
  const gone = new AbortController();
  const before = want('again', gone.signal);
  gone.abort();
  const after = want('again');
  t.is(await before, undefined);
  t.is(queue.waiting, 2);
  await end('running');
  await end('again');
  t.is(await after, undefined);
});

test('what is computed ahead stays, whoever wanted it has gone', async (t) => {
  const { seen, want, ahead, end } = makeQueue(9);
  void want('running');
  const gone = new AbortController();
  void ahead('other');
  void want('both', gone.signal);
  void ahead('both');
  // It is no connection that wants this one.
  void want('kept', gone.signal);
  void want('kept');
  gone.abort();
  for (const name of ['running', 'kept', 'other', 'both']) await end(name);
  t.deepEqual(seen.started, ['running', 'kept', 'other', 'both']);
  t.is(await want('late', gone.signal), undefined);
});

test('no listener stays behind', async (t) => {
  const { want, end } = makeQueue(9);
  const { signal } = new AbortController();
  let listeners = 0;
  const add = signal.addEventListener.bind(signal);
  const remove = signal.removeEventListener.bind(signal);
  signal.addEventListener = (...args: Parameters<typeof add>) => {
    listeners++;
    add(...args);
  };
  signal.removeEventListener = (...args: Parameters<typeof remove>) => {
    listeners--;
    remove(...args);
  };
  for (let i = 0; i < 3; i++) for (const name of ['a', 'b']) void want(name, signal);
  t.is(listeners, 2);
  for (const name of ['a', 'b']) await end(name);
  t.is(listeners, 0);
});

test('what turned out to have no patches is not looked at again, and not counted as refused', async (t) => {
  const { queue, seen, want, ahead } = makeQueue(0);
  queue.hasNone('key');
  t.is(await ahead('key'), undefined);
  t.is(await want('key'), undefined);
  t.deepEqual(seen, { started: [], refused: 0 });
});

test('one that fails does not stop those behind it', async (t) => {
  const { queue, seen, want, end } = makeQueue(9);
  const failing = queue.want('fails', () => Promise.reject(new Error('no')));
  void want('next');
  await t.throwsAsync(failing, { message: 'no' });
  await end('next');
  t.deepEqual(seen.started, ['next']);
  await queue.settled();
});
