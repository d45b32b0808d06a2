// What the session is let answer for: what it would say is what the tree says, whatever has happened.
import { fstatSync } from 'node:fs';
import ava, { type ExecutionContext } from 'ava';
import { ATTR } from '../../native/upcalls.ts';
import { AS_ROOT, NotedHost, type Stage, stage } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const RENAME_EXCHANGE = 2;

/** A host that also notes what an answer is made of. */
class AnsweringHost extends NotedHost {
  readonly shown = new Map<number, { ino: number; links: number }>();

  override adopt(node: number, fd: number, ino = 0, links = 0): void {
    super.adopt(node, fd);
    this.shown.set(node, { ino, links });
  }
}

function image(t: ExecutionContext): { s: Stage; host: AnsweringHost } {
  const sub = () => ({ entries: { deep: { data: 'deep' } } });
  const s = stage(t, {
    etc: { entries: { passwd: { data: 'root' }, a: sub(), b: sub() } },
    lib: { entries: { one: { data: 'one' }, c: sub(), d: { entries: {} } } },
  });
  s.closeTree();
  s.host = new AnsweringHost();
  s.tree = s.open();
  return { s, host: s.host as AnsweringHost };
}

/** What the session would answer for a node, in the words of the tree. */
function answer(host: AnsweringHost, node: number): Record<string, number> {
  const st = fstatSync(host.adopted.get(node) ?? -1, { bigint: true });
  const { ino = 0, links = 0 } = host.shown.get(node) ?? {};
  return {
    ino,
    nlink: links === 0 ? Number(st.nlink) : links,
    mode: Number(st.mode),
    uid: Number(st.uid),
    gid: Number(st.gid),
    size: Number(st.size),
    mtime: Number(st.mtimeNs),
    ctime: Number(st.ctimeNs),
  };
}

function told(s: Stage, node: number): Record<string, number> {
  const { attributes } = s.tree.getattr(node);
  const at = (slot: number) => attributes[slot] ?? Number.NaN;
  const ns = (slot: number) => Number(BigInt(at(slot)) * 1_000_000_000n + BigInt(at(slot + 1)));
  return {
    ino: at(ATTR.ino),
    nlink: at(ATTR.nlink),
    mode: at(ATTR.mode),
    uid: at(ATTR.uid),
    gid: at(ATTR.gid),
    size: at(ATTR.size),
    mtime: ns(ATTR.mtimeSec),
    ctime: ns(ATTR.ctimeSec),
  };
}

/** Looks at every directory so often that those in upper/ are adopted. */
function look(s: Stage, paths: string[]): void {
  for (const path of paths) {
    const node = s.find(path);
    for (let i = 0; node !== undefined && i < 4; i++) s.tree.getattr(node);
  }
}

test('a directory that is looked at again and again is answered for, as the tree would', async (t) => {
  const { s, host } = image(t);
  const directories = [
    '',
    'etc',
    'etc/a',
    'etc/b',
    'lib',
    'lib/c',
    'lib/d',
    'lib/a',
    'etc/in',
    'new',
    'new/in',
  ];
  look(s, directories);
  t.deepEqual([...host.adopted.keys()], [1], 'only what is in upper/');
  const steps: (() => unknown)[] = [
    () => s.create('etc/file', 'x'),
    () => s.mkdir('new'),
    () => s.mkdir('new/in'),
    () => s.write('lib/one', 'ONE'),
    () => s.write('etc/a/deep', 'DEEP'),
    () => s.go((tree) => tree.setattr(s.node('etc'), { mode: 0o701, uid: 7 })),
    () => s.unlink('etc/file'),
    () => s.rename('new/in', 'etc/in'),
    () => s.rename('etc/in', 'new/in'),
    () => s.rename('etc/a', 'lib/a'),
    () => s.rename('lib/a', 'etc/b', RENAME_EXCHANGE),
    () => s.unlink('etc/b/deep'),
    // Over a directory in upper/ that holds a whiteout.
    () => s.rename('new/in', 'etc/b'),
    () => t.throws(() => s.rmdir('lib')),
    () => s.rmdir('lib/d'),
    () => s.rmdir('etc/b'),
    () => s.rmdir('new'),
    () => s.mkdir('new'),
  ];
  let seen = 0;
  for (const [number, step] of steps.entries()) {
    await step();
    for (const node of host.adopted.keys()) {
      t.deepEqual(answer(host, node), told(s, node), `node ${node} after step ${number}`);
      seen++;
    }
    look(s, directories);
    const upper = directories.filter((path) => host.adopted.has(s.find(path) ?? 0)).length;
    t.true(upper > 0);
    const shown = [...host.adopted.keys()].filter((node) => host.shown.get(node)?.links !== 0);
    t.is(shown.length, upper, `step ${number}: what is gone is let go`);
  }
  t.true(seen > 20, `${seen} answers compared`);
});

test('while the times of a directory are put back nobody answers for it', async (t) => {
  const { s, host } = image(t);
  await s.write('etc/a/deep', 'x');
  look(s, ['etc']);
  const etc = s.node('etc');
  t.true(host.adopted.has(etc));
  const before = told(s, etc);
  const { utimes } = s.io;
  const during: boolean[] = [];
  const io = Object.create(s.io) as typeof s.io;
  io.utimes = (...args) => {
    // Of the directory itself, not of what is made in work/.
    if (args[1] === '') during.push(host.adopted.has(etc));
    return utimes(...args);
  };
  s.closeTree();
  s.io = io;
  s.tree = s.open();
  look(s, ['etc']);
  t.true(host.adopted.has(etc));
  during.length = 0;
  await s.write('etc/passwd', 'ROOT');
  t.deepEqual(during, [false]);
  t.is(told(s, etc).mtime, before.mtime);
});

test('what cannot be adopted stays with the tree', (t) => {
  const { s, host } = image(t);
  const io = Object.create(s.io) as typeof s.io;
  io.openFile = () => {
    throw Object.assign(new Error('too many'), { errno: 24, code: 'EMFILE' });
  };
  s.closeTree();
  s.io = io;
  s.tree = s.open();
  look(s, ['']);
  t.false(host.adopted.has(1));
  t.is(told(s, 1).nlink, 4);
});
