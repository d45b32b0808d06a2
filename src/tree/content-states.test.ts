// States of contents and those who wait for them, without a session.
import { constants } from 'node:os';
import test from 'ava';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { makeDirectory } from '../image/tree.ts';
import { CONTENT_STATE } from '../native/index.ts';
import { type ContentError, ContentStates } from './content-states.ts';

const MIB = 1 << 20;
const { EIO, ENOSPC } = constants.errno;

/** Content 0: one part. Content 1: three parts, numbers 1 to 3 through all contents. */
function makeStates(): ContentStates {
  const root = makeDirectory('', 0);
  for (const [name, size, digest] of [
    ['a', 10, 'a'.repeat(64)],
    ['b', 2 * MIB + 1, 'b'.repeat(64)],
  ] as const) {
    const inode = { type: 'file' as const, mode: 0o644, uid: 0, gid: 0, mtimeSec: 0, mtimeNsec: 0 };
    root.children!.set(name, { name, inode: { ...inode, size, digest, layer: 0 } });
  }
  return new ContentStates(new Toc(buildToc(root).bytes));
}

const never = new AbortController().signal;
const of = (...numbers: number[]) => Uint32Array.from(numbers);

test('parts are readable one by one, a whole content everywhere', async (t) => {
  const states = makeStates();
  const second = { content: 1, firstPart: 1, lastPart: 1 };
  const all = { content: 1, firstPart: 0, lastPart: 2 };
  const waits = [states.wait(second, 0, never), states.wait(all, 0, never)];
  t.is(states.waiting(), 2);
  states.markParts(of(1));
  t.is(states.state(1), CONTENT_STATE.Partial);
  t.false(states.readable(second));
  states.markParts(of(2));
  await waits[0];
  t.true(states.readable(second));
  t.false(states.readable(all));
  t.is(states.waiting(), 1);
  states.markReady(of(1));
  await waits[1];
  t.is(states.waiting(), 0);
  t.is(states.state(0), CONTENT_STATE.Empty);
});

test('a failure ends waits and later ones with its errno, until it is cleared', async (t) => {
  const states = makeStates();
  const needed = { content: 1, firstPart: 2, lastPart: 2 };
  states.markParts(of(1));
  const wait = states.wait(needed, 0, never);
  states.markFailed(of(1), ENOSPC);
  t.is((await t.throwsAsync<ContentError>(wait))?.errno, ENOSPC);
  t.is((await t.throwsAsync<ContentError>(states.wait(needed, 0, never)))?.errno, ENOSPC);
  const { epoch } = states;
  states.clearFailed(of(0, 1));
  t.not(states.epoch, epoch);
  t.is(states.state(1), CONTENT_STATE.Partial);
  t.is(states.state(0), CONTENT_STATE.Empty);
  t.true(states.readable({ content: 1, firstPart: 0, lastPart: 0 }));
});

test('the loss of a whole content changes the epoch', (t) => {
  const states = makeStates();
  states.markFailed(of(0), EIO);
  t.is(states.epoch, 0);
  states.markReady(of(0));
  states.markFailed(of(0), EIO);
  t.is(states.epoch, 1);
});

test('parts of a content that is lost do not count when it is waited for again', (t) => {
  const states = makeStates();
  states.markParts(of(0, 1, 2, 3));
  states.markReady(of(1));
  states.markFailed(of(1), EIO);
  states.clearFailed(of(1));
  t.is(states.state(0), CONTENT_STATE.Partial, 'those of others stay');
  t.is(states.state(1), CONTENT_STATE.Empty);
  states.markParts(of(2));
  t.true(states.readable({ content: 1, firstPart: 1, lastPart: 1 }));
  t.false(states.readable({ content: 1, firstPart: 0, lastPart: 1 }));
});

test('what is forgotten is waited for, and who waited goes on waiting', async (t) => {
  const states = makeStates();
  states.markParts(of(1));
  const last = { content: 1, firstPart: 2, lastPart: 2 };
  const wait = states.wait(last, 0, never);
  const { epoch } = states;
  states.forget(of(0, 1));
  t.not(states.epoch, epoch);
  t.is(states.state(1), CONTENT_STATE.Empty);
  t.false(states.readable({ content: 1, firstPart: 0, lastPart: 0 }));
  t.is(states.waiting(), 1);
  states.markParts(of(2, 3));
  await wait;
  t.false(states.readable({ content: 1, firstPart: 0, lastPart: 0 }));
  states.markReady(of(0, 1));
  t.true(states.complete);
  states.forget(of(0));
  t.false(states.complete);
});

test('a table becomes the same as the one that is replayed on it, whatever it had', (t) => {
  const [from, to] = [makeStates(), makeStates()];
  to.markReady(of(0));
  to.markParts(of(1, 2));
  from.markParts(of(3));
  from.replay(to);
  t.is(to.state(0), CONTENT_STATE.Empty);
  for (const part of [0, 1, 2]) {
    const needed = { content: 1, firstPart: part, lastPart: part };
    t.is(to.readable(needed), part === 2, `part ${part}`);
  }
  to.markFailed(of(0), ENOSPC);
  from.markFailed(of(1), ENOSPC);
  from.replay(to);
  t.is(to.state(0), CONTENT_STATE.Empty);
  t.is(to.state(1), CONTENT_STATE.Failed);
  // Its parts are there still, and count when the disk has room again.
  for (const states of [from, to]) states.clearFailed(of(1));
  t.true(to.readable({ content: 1, firstPart: 2, lastPart: 2 }));
});

test('a wait has an end: its bound, or the end of who waits', async (t) => {
  const states = makeStates();
  const needed = { content: 0, firstPart: 0, lastPart: 0 };
  const late = await t.throwsAsync<ContentError>(states.wait(needed, 5, never));
  t.is(late?.errno, EIO);
  t.true(late?.timedOut);
  const end = new AbortController();
  const wait = states.wait(needed, 0, end.signal);
  end.abort();
  const ended = await t.throwsAsync<ContentError>(wait);
  t.false(ended?.timedOut);
  await t.throwsAsync(states.wait(needed, 0, end.signal));
  t.is(states.waiting(), 0);
});
