// Reading an upper directory through descriptors: names and paths that no path could name, and what is
// removed meanwhile. Whiteouts and overlayfs' marks need root: test/long/diff-commit.test.ts.
import { execFileSync } from 'node:child_process';
import { closeSync, readSync } from 'node:fs';
import { link, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { native } from '../native/index.ts';
import { readUpper, UpperFiles, type UpperNode } from './upper-tree.ts';

async function directory(t: ExecutionContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-upper-'));
  // A path deeper than PATH_MAX goes by rm's own descriptors.
  t.teardown(() => execFileSync('rm', ['-rf', dir]));
  return dir;
}

function read(files: UpperFiles, path: string): string {
  const fd = files.openFile(path);
  try {
    const buffer = Buffer.alloc(100);
    return buffer.toString('utf8', 0, readSync(fd, buffer));
  } finally {
    closeSync(fd);
  }
}

test('files, links, attributes and bytes that are no text', async (t) => {
  const dir = await directory(t);
  await mkdir(join(dir, 'd'));
  await writeFile(join(dir, 'd/f'), 'content', { mode: 0o640 });
  await link(join(dir, 'd/f'), join(dir, 'again'));
  await symlink(
    Buffer.from([0xff, 0x2f]),
    Buffer.concat([Buffer.from(`${dir}/`), Buffer.from([0xfe])]),
  );
  const upper = readUpper(native().upper, dir);
  t.deepEqual([...upper.children!.keys()].sort(), ['again', 'd', '\xfe']);
  const file = upper.children!.get('d')!.children!.get('f')!;
  t.is(file.ino, upper.children!.get('again')!.ino);
  t.like(file, { nlink: 2, size: 7, mode: 0o100640, whiteout: false, opaque: false });
  t.is(upper.children!.get('\xfe')!.target, '\xff/');
  const files = new UpperFiles(native().upper, dir);
  t.is(read(files, 'd/f'), 'content');
  t.is(read(files, 'again'), 'content');
  files.close();
});

test('paths of any depth and names of 255 bytes', async (t) => {
  const dir = await directory(t);
  const name = 'n'.repeat(255);
  const script = `
    use strict;
    chdir $ARGV[0] or die;
    for (1..40) { mkdir $ARGV[1] or die; chdir $ARGV[1] or die }
    open my $file, '>', 'bottom' or die; print $file 'deep';`;
  execFileSync('perl', ['-e', script, dir, name]);
  let node: UpperNode = readUpper(native().upper, dir);
  for (let depth = 0; depth < 40; depth++) node = node.children!.get(name)!;
  t.is(node.children!.get('bottom')!.size, 4);
  const files = new UpperFiles(native().upper, dir);
  const path = `${Array(40).fill(name).join('/')}/bottom`;
  t.true(path.length > 10_000);
  t.is(read(files, path), 'deep');
  t.is(read(files, path), 'deep', 'a second time, by the directories that are open');
  files.close();
});

test('a snapshot that is not there says that it was unmounted', async (t) => {
  const dir = await directory(t);
  await rm(dir, { recursive: true });
  const error = t.throws(() => readUpper(native().upper, dir), { message: /it was unmounted/ });
  t.is((error as { kind?: string }).kind, 'not-found');
});
