// Each operation with the Nth system call on upper/ failing, for N = 1, 2, 3 ... until it passes
// untouched. After each failure: the running tree shows the old tree or the new one, and so does a tree
// that is opened again on what the failure left; a second attempt then does what the first should
// have. The same with the daemon gone after the Nth call: nothing is undone, the tree is opened again.
import { closeSync, constants, existsSync, readdirSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import ava, { type ExecutionContext } from 'ava';
import { native } from '../../native/index.ts';
import type { NativeUpper } from '../../native/upper.ts';
import { AS_ROOT, ME, ROOT_NODE, Stage, statOf } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const { O_RDWR, O_TRUNC, O_WRONLY } = constants;
const EIO = 5;
const WHERE = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
/** What a failing disk does not stop. */
const ALWAYS = new Set<PropertyKey>(['prepareThread', 'close']);

/** The real calls, of which the Nth fails; after it none does, or (`dead`) all do. */
class FaultyUpper {
  calls = 0;
  failAt = 0;
  dead = false;
  readonly io: NativeUpper;

  constructor(real: NativeUpper) {
    this.io = new Proxy(real, {
      get: (target, key) => {
        const call = Reflect.get(target, key);
        if (typeof call !== 'function' || ALWAYS.has(key)) return call;
        return (...args: unknown[]) => {
          this.calls++;
          const fails = this.failAt > 0 && this.calls >= this.failAt;
          if (fails && (this.dead || this.calls === this.failAt)) {
            const error = Object.assign(new Error(`${String(key)}: injected`), { errno: EIO });
            if (['fsync', 'copyFile', 'fsyncDirectory', 'syncfs'].includes(String(key)))
              return Promise.reject(error);
            throw error;
          }
          return call.apply(target, args);
        };
      },
    });
  }
}

function makeStage(): Stage {
  const linked = { data: 'linked', mode: 0o600, mtimeSec: 9 };
  const xattrs = new Map([['trusted.x', Buffer.from('1')]]);
  return new Stage(
    {
      d: {
        mode: 0o750,
        xattrs,
        entries: {
          f: { data: 'content', mode: 0o640, uid: 3, gid: 4, xattrs, mtimeSec: 8 },
          a: linked,
          s: { type: 'symlink', target: 'f', mode: 0o777 },
        },
      },
      e: { entries: { b: linked, x: { entries: {} } } },
      v: { entries: {} },
    },
    WHERE,
  );
}

/** Everything that can be seen, times of directories and changes aside. */
function view(s: Stage): string[] {
  const lines: string[] = [];
  const walk = (path: string, node: number) => {
    const { ino, mode, nlink, uid, gid, size } = statOf(s.tree.getattr(node));
    const isDirectory = (mode & 0o170000) === 0o040000;
    const xattrs = s.tree
      .listxattr(node, ME)
      .map((name) => `${name}=${s.tree.getxattr(node, name)}`);
    const isFile = (mode & 0o170000) === 0o100000;
    const content = isFile ? s.readNode(node).toString() : '';
    // Inodes that are in no template get whatever number upper/ has for them.
    const known = ino < 2 ** 32 ? ino : 'own';
    lines.push(
      [
        path,
        known,
        mode.toString(8),
        nlink,
        uid,
        gid,
        isDirectory ? 0 : size,
        content,
        xattrs,
      ].join(' '),
    );
    if (!isDirectory) return;
    const names = Array.from(s.tree.list(node, 0), ({ name }) => name).sort();
    for (const name of names) walk(`${path}/${name}`, s.tree.lookup(node, name)!.node);
  };
  walk('', ROOT_NODE);
  return lines;
}

type Operation = (s: Stage) => unknown;
interface Case {
  /** What comes before, without faults. */
  prepare?: Operation;
  run: Operation;
}

const set = (path: string, changes: Parameters<Stage['tree']['setattr']>[1]) => (s: Stage) =>
  s.go((tree) => tree.setattr(s.node(path), changes));

const CASES: Record<string, Case> = {
  'a first write': { run: (s) => s.open_('d/f', O_RDWR, () => undefined) },
  'a first open with O_TRUNC': { run: (s) => s.open_('d/f', O_WRONLY | O_TRUNC, () => undefined) },
  'a first write to a hard link': { run: (s) => s.open_('e/b', O_RDWR, () => undefined) },
  'a truncation of a hard link': {
    run: (s) => s.open_('e/b', O_WRONLY | O_TRUNC, () => undefined),
  },
  'chmod of the image’s file': { run: set('d/f', { mode: 0o4711 }) },
  'chown of the image’s symlink': { run: set('d/s', { uid: 77 }) },
  'chmod of the image’s directory': { run: set('e/x', { mode: 0o700 }) },
  'truncation to some length': { run: set('d/f', { size: 3 }) },
  'setxattr on the image’s file': {
    run: (s) => s.go((t) => t.setxattr(s.node('d/f'), 'trusted.y', Buffer.from('2'), 0, false)),
  },
  'create in a directory of the image': { run: (s) => s.create('d/new', '') },
  'create over a whiteout': { prepare: (s) => s.unlink('d/f'), run: (s) => s.create('d/f', '') },
  'mkdir over a whiteout': { prepare: (s) => s.rmdir('v'), run: (s) => s.mkdir('v') },
  symlink: { run: (s) => s.tree.symlink(ROOT_NODE, 'l', Buffer.from('to'), ME) },
  'mknod over a whiteout': {
    prepare: (s) => s.unlink('d/s'),
    run: (s) => s.tree.mknod(s.node('d'), 's', 0o010600, 0, ME),
  },
  'unlink of the image’s file': { run: (s) => s.unlink('d/f') },
  'unlink of one name of a hard link': { run: (s) => s.unlink('d/a') },
  'unlink of a promoted file': {
    prepare: (s) => s.write('d/f', 'x'),
    run: (s) => s.unlink('d/f'),
  },
  'unlink of a new file': { prepare: (s) => s.create('d/n', 'x'), run: (s) => s.unlink('d/n') },
  'rmdir of the image’s directory': { run: (s) => s.rmdir('e/x') },
  'rmdir of a merged directory with whiteouts': {
    prepare: (s) => {
      s.unlink('e/b');
      s.rmdir('e/x');
    },
    run: (s) => s.rmdir('e'),
  },
  'rmdir of a moved directory with whiteouts': {
    prepare: async (s) => {
      await s.rename('e', 'moved');
      s.unlink('moved/b');
      s.rmdir('moved/x');
    },
    run: (s) => s.rmdir('moved'),
  },
  'rename of the image’s file': { run: (s) => s.rename('d/f', 'e/g') },
  'rename over the image’s file': { run: (s) => s.rename('d/f', 'd/s') },
  'rename over one name of a hard link': { run: (s) => s.rename('d/f', 'd/a') },
  'rename over a new file': {
    prepare: (s) => s.create('n', 'n'),
    run: (s) => s.rename('d/f', 'n'),
  },
  'rename of the image’s directory': { run: (s) => s.rename('d', 'v/d') },
  'rename over an empty directory of the image': { run: (s) => s.rename('d', 'v') },
  'rename over a directory with whiteouts': {
    prepare: (s) => {
      s.unlink('e/b');
      s.rmdir('e/x');
    },
    run: (s) => s.rename('d', 'e'),
  },
  'rename of a new directory onto a whiteout': {
    prepare: (s) => {
      s.rmdir('v');
      s.mkdir('n');
      s.create('n/file', 'x');
    },
    run: (s) => s.rename('n', 'v'),
  },
  'exchange of files': { run: (s) => s.rename('d/f', 'e/b', 2) },
  'exchange of a directory and a file': { run: (s) => s.rename('d/f', 'e', 2) },
  'exchange with a new directory': {
    prepare: (s) => s.mkdir('n'),
    run: (s) => s.rename('d', 'n', 2),
  },
  'link to the image’s file': { run: (s) => s.link('d/f', 'l') },
  'link over a whiteout': { prepare: (s) => s.unlink('d/s'), run: (s) => s.link('d/f', 'd/s') },
  'a file without a name gets one': {
    run: (s) => {
      const { entry, opened } = s.tree.tmpfile(ROOT_NODE, O_RDWR, 0o600, ME);
      const { node } = entry;
      writeSync(opened.fd, 'tmp');
      closeSync(opened.fd);
      try {
        s.tree.link(node, ROOT_NODE, 'named');
      } finally {
        s.tree.forget(node, 2);
      }
    },
  },
};

interface Prepared {
  s: Stage;
  faulty: FaultyUpper;
}

async function prepared(of: Case): Promise<Prepared> {
  const s = makeStage();
  const faulty = new FaultyUpper(native().upper);
  s.io = faulty.io;
  s.reopen();
  await of.prepare?.(s);
  return { s, faulty };
}

/** Runs the operation with its Nth call failing; false where it has fewer. */
async function runFailing({ s, faulty }: Prepared, of: Case, n: number): Promise<boolean> {
  faulty.calls = 0;
  faulty.failAt = n;
  try {
    await of.run(s);
  } catch (error) {
    if ((error as { errno?: number }).errno !== EIO) throw error;
  }
  const reached = faulty.calls >= n;
  faulty.failAt = 0;
  return reached;
}

/** What the operation does where nothing fails. */
async function oldAndNew(of: Case): Promise<[string[], string[]]> {
  const { s } = await prepared(of);
  const before = view(s);
  await of.run(s);
  const after = view(s);
  s.reopen();
  if (after.join() !== view(s).join()) throw new Error('a new start shows another tree');
  s.remove();
  return [before, after];
}

function isOneOf(t: ExecutionContext, got: string[], wanted: string[][], what: string): void {
  if (wanted.some((view) => view.join('\n') === got.join('\n'))) return;
  t.deepEqual(got, wanted[0], what);
}

const N_MAX = 200;

for (const [name, of] of Object.entries(CASES)) {
  test(`a failing call leaves old or new: ${name}`, async (t) => {
    const wanted = await oldAndNew(of);
    let n = 1;
    for (; n < N_MAX; n++) {
      const at = await prepared(of);
      const { s } = at;
      const reached = await runFailing(at, of, n);
      const running = view(s);
      isOneOf(t, running, wanted, `running, call ${n} failed`);
      if (running.join('\n') === wanted[0].join('\n') && reached) {
        await of.run(s);
        isOneOf(t, view(s), [wanted[1]], `again, after call ${n} failed`);
      }
      s.reopen();
      isOneOf(t, view(s), wanted, `opened again, call ${n} failed`);
      t.deepEqual(readdirSync(s.work), []);
      s.remove();
      if (!reached) break;
    }
    t.true(n > 2 && n < N_MAX, `${n} calls`);
  });

  test(`a sudden end leaves old or new: ${name}`, async (t) => {
    const wanted = await oldAndNew(of);
    let n = 1;
    for (; n < N_MAX; n++) {
      const at = await prepared(of);
      at.faulty.dead = true;
      const reached = await runFailing(at, of, n);
      at.faulty.dead = false;
      at.s.reopen();
      isOneOf(t, view(at.s), wanted, `opened again, ended before call ${n}`);
      at.s.remove();
      if (!reached) break;
    }
    t.true(n > 2 && n < N_MAX, `${n} calls`);
  });
}
