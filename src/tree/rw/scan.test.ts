// What a start makes of an upper/ that a crash, another program or another kernel has left.
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import ava, { type ExecutionContext } from 'ava';
import { FirstlightError } from '../../errors/errors.ts';
import { native } from '../../native/index.ts';
import { AS_ROOT, ME, type Stage, stage } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const { upper: io } = native();

function image(t: ExecutionContext): Stage {
  const linked = { data: 'linked' };
  return stage(t, {
    a: linked,
    d: { entries: { b: linked, c: linked, f: { data: 'f' } } },
    e: { entries: { g: { data: 'g' } } },
  });
}

/** An attribute of a file in upper/. */
function set(s: Stage, name: string, attribute: string, value: string): void {
  const directory = io.openDirectory(-1, s.upper);
  io.setxattr(directory, name, attribute, Buffer.from(value), 0);
  io.close(directory);
}

test('a hard link that was promoted under some of its names gets the others', async (t) => {
  const s = image(t);
  await s.write('a', 'LINKED');
  const { ino } = s.stat('a');
  s.closeTree();
  rmSync(join(s.upper, 'd'), { recursive: true });
  s.tree = s.open();
  for (const path of ['a', 'd/b', 'd/c']) {
    t.is(s.read(path).toString(), 'LINKED');
    t.like(s.stat(path), { ino, nlink: 3 });
  }
  t.is(lstatSync(join(s.upper, 'd/c')).ino, lstatSync(join(s.upper, 'a')).ino);
});

test('work/ is emptied, whatever is in it', (t) => {
  const s = image(t);
  s.closeTree();
  mkdirSync(join(s.work, 'work/deep/er'), { recursive: true, mode: 0o000 });
  writeFileSync(join(s.work, 'new-0'), 'half a copy');
  symlinkSync('/', join(s.work, 'link'));
  execFileSync('mknod', [join(s.work, 'w'), 'c', '0', '0']);
  s.tree = s.open();
  t.deepEqual(readdirSync(s.work), []);
});

test('a whiteout over nothing is not seen, and gives way', (t) => {
  const s = image(t);
  s.closeTree();
  execFileSync('mknod', [join(s.upper, 'n'), 'c', '0', '0']);
  execFileSync('mknod', [join(s.upper, 'm'), 'c', '0', '0']);
  s.tree = s.open();
  t.deepEqual(s.names(''), ['a', 'd', 'e']);
  s.create('n', 'new');
  s.mkdir('m');
  t.deepEqual(s.names('').sort(), ['a', 'd', 'e', 'm', 'n']);
  s.reopen();
  t.is(s.read('n').toString(), 'new');
  t.deepEqual(s.names('m'), []);
});

test('origins that cannot be are those of new files', async (t) => {
  const s = image(t);
  await s.write('d/f', 'F');
  const { ino } = s.stat('d/f');
  s.closeTree();
  for (const [name, origin] of Object.entries({
    copy: `${ino}`,
    directory: `${s.image.toc.lookup(0, Buffer.from('e')) + 1}`,
    second: `${s.image.toc.rows + 1}`,
    text: 'x',
  })) {
    writeFileSync(join(s.upper, name), name);
    set(s, name, 'trusted.firstlight.origin', origin);
  }
  s.tree = s.open();
  const inos = ['copy', 'directory', 'second', 'text', 'd/f'].map((path) => s.stat(path).ino);
  t.is(new Set(inos).size, 5);
  // Of two with one origin, one has it.
  t.is(inos.filter((number) => number < 2 ** 32).length, 1);
  t.is(s.read('copy').toString(), 'copy');
  t.is(s.read('d/f').toString(), 'F');
});

test('redirects that lead nowhere, or to one place twice', (t) => {
  const s = image(t);
  s.closeTree();
  for (const name of ['nowhere', 'file', 'one', 'other']) mkdirSync(join(s.upper, name));
  set(s, 'nowhere', 'trusted.overlay.redirect', '/none/at/all');
  set(s, 'file', 'trusted.overlay.redirect', '/d/f');
  set(s, 'one', 'trusted.overlay.redirect', '/e');
  set(s, 'other', 'trusted.overlay.redirect', '/e');
  execFileSync('mknod', [join(s.upper, 'e'), 'c', '0', '0']);
  s.tree = s.open();
  t.deepEqual([s.names('nowhere'), s.names('file')], [[], []]);
  t.deepEqual([s.names('one'), s.names('other')].flat(), ['g']);
  t.is(s.find('e'), undefined);
});

test('files without their contents are refused, and why is said', (t) => {
  const s = image(t);
  s.closeTree();
  execFileSync('truncate', ['-s', '1000', join(s.upper, 'hollow')]);
  set(s, 'hollow', 'trusted.overlay.metacopy', '');
  const error = t.throws(() => s.open(), { instanceOf: FirstlightError });
  t.regex(error?.line ?? '', /metacopy=on; mount it with --rw overlay/);
  rmSync(join(s.upper, 'hollow'));
  s.tree = s.open();
});

test('a filesystem that keeps no whiteouts or attributes is refused, and why is said', (t) => {
  const s = image(t);
  s.closeTree();
  const fresh = join(s.root, 'fresh');
  mkdirSync(fresh);
  for (const call of ['setxattr', 'mknod', 'rename'] as const) {
    const refusing = new Proxy(io, {
      get: (target, key) =>
        key === call
          ? () => {
              throw Object.assign(new Error(`${call}: not supported`), { errno: 95 });
            }
          : Reflect.get(target, key),
    });
    s.io = refusing;
    const before = s.upper;
    Object.assign(s, { upper: fresh });
    const error = t.throws(() => s.open(), { instanceOf: FirstlightError });
    t.regex(error?.line ?? '', /not supported; put --root on ext4/);
    Object.assign(s, { upper: before });
  }
  s.io = io;
  s.tree = s.open();
});

test('a hard link between new names is one file again', async (t) => {
  const s = image(t);
  s.create('x', 'x');
  await s.link('x', 'e/y');
  s.closeTree();
  linkSync(join(s.upper, 'x'), join(s.upper, 'z'));
  s.tree = s.open();
  t.is(s.stat('x').node, s.stat('e/y').node);
  t.like(s.stat('z'), { nlink: 3, ino: s.stat('x').ino });
  s.unlink('x');
  s.tree.symlink(s.node('e'), 'l', Buffer.from('y'), ME);
  t.true(existsSync(join(s.upper, 'e/y')));
  t.is(s.stat('z').nlink, 2);
});
