// Opens of image files that others have open, or have just closed: which file they get, by direct calls.
import { closeSync, constants as flags } from 'node:fs';
import { constants } from 'node:os';
import ava, { type ExecutionContext } from 'ava';
import { Wait } from './operations.ts';
import { AS_ROOT, errnoOfCall, type Stage, stage, statOf } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const { O_DSYNC, O_RDONLY, O_TRUNC, O_WRONLY } = flags;

function image(t: ExecutionContext): Stage {
  const linked = { data: 'linked content', mode: 0o600 };
  return stage(t, {
    etc: { entries: { passwd: { data: 'root:x:0:0', mode: 0o640 }, a: linked } },
    lib: { entries: { b: linked } },
  });
}

const fails = async (
  t: ExecutionContext,
  code: keyof typeof constants.errno,
  operation: () => unknown,
) => t.is(await errnoOfCall(operation), constants.errno[code], code);

test('a removed file of the image keeps its content for who has it open with O_PATH', async (t) => {
  const s = image(t);
  const [changed, whole] = [s.node('etc/passwd'), s.node('etc/a')];
  await s.write('etc/passwd', 'ROOT');
  s.unlink('etc/passwd');
  for (const path of ['etc/a', 'lib/b']) s.unlink(path);
  for (const node of [changed, whole]) await s.go((tree) => tree.setattr(node, { mode: 0o600 }));
  t.is(s.readNode(changed).toString(), 'ROOT:x:0:0');
  t.is(s.readNode(whole).toString(), 'linked content');
  t.like(statOf(s.tree.getattr(changed)), { nlink: 0, mode: 0o100600, size: 10 });
  for (const node of [changed, whole]) s.tree.forget(node, 1);
  t.like(statOf(s.tree.getattr(changed)), { nlink: 0, mode: 0o100600, size: 10 });
  await fails(t, 'ESTALE', () => s.readNode(changed));
});

test('a reader that has just closed the image is waited for: the node stays, by descriptor too', async (t) => {
  const s = image(t);
  const { node } = s.stat('etc/passwd');
  s.host.handles.set(node, 1);
  let waits = 0;
  const write = (tree: typeof s.tree) => {
    try {
      return tree.open(node, O_WRONLY, false);
    } catch (error) {
      // Of the copy first, then of the release, which comes in between.
      if (error instanceof Wait && ++waits === 2) s.host.handles.set(node, 0);
      throw error;
    }
  };
  const opened = await s.go(write);
  if (opened.kind !== 'upper') return t.fail('opened for writing, and it is the template');
  closeSync(opened.fd);
  t.is(waits, 2);
  t.is(s.node('etc/passwd'), node);
});

test('a truncating open that readers keep from the file leaves its content', async (t) => {
  const s = image(t);
  const { node } = s.stat('etc/passwd');
  s.host.handles.set(node, 1);
  await fails(t, 'ESTALE', () => s.go((tree) => tree.open(node, O_WRONLY | O_TRUNC, false)));
  t.is(s.read('etc/passwd').toString(), 'root:x:0:0');
  const other = s.stat('etc/a').node;
  s.host.handles.set(other, 1);
  await fails(t, 'ESTALE', () => s.go((tree) => tree.setattr(other, { size: 0 })));
  t.is(s.read('etc/a').toString(), 'linked content');
});

test('before writes that last by themselves the name is made to last, once, and failures are told', async (t) => {
  const s = image(t);
  const whole = s.io;
  let syncs = 0;
  let fail = false;
  s.io = new Proxy(whole, {
    get: (io, call: keyof typeof whole) => {
      if (call !== 'fsync') return io[call];
      return (fd: number, dataOnly: boolean) => {
        syncs++;
        if (!fail) return io.fsync(fd, dataOnly);
        return Promise.reject(Object.assign(new Error('bad disk'), { code: 'EIO', errno: 5 }));
      };
    },
  });
  s.reopen();
  const open = (more: number) => s.open_('etc/passwd', more, () => undefined);
  await open(O_WRONLY);
  t.is(syncs, 1, 'of the copy');
  fail = true;
  await fails(t, 'EIO', () => open(O_WRONLY | O_DSYNC));
  fail = false;
  await open(O_WRONLY | O_DSYNC);
  t.is(syncs, 3);
  await open(O_WRONLY | O_DSYNC);
  await open(O_RDONLY | O_DSYNC);
  s.create('etc/new');
  await s.open_('etc/new', O_WRONLY | O_DSYNC, () => undefined);
  t.is(syncs, 3);
});
