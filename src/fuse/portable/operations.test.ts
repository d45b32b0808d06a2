// The portable session's answers, by calling them: no mount, no library.
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Toc } from '../../delta/toc.ts';
import { buildToc } from '../../delta/toc-build.ts';
import { fromText, type Inode, makeDirectory, type TreeNode } from '../../image/tree.ts';
import { Template } from '../../tree/template.ts';
import { errnoOf, Operations, type Waits } from './operations.ts';

const { ENOENT, ENOTDIR, EROFS, EIO, EBADF, ENOSPC, ENAMETOOLONG } = constants.errno;
const PART = 1 << 20;
const PREFIX = 'f'.repeat(32);
const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

const SMALL = Buffer.from('small content');
const LARGE = Buffer.alloc(2 * PART + 5, 7);
LARGE.fill(9, PART, 2 * PART);

interface World {
  dir: string;
  template: Template;
  /** Contents: 0 is /large, 1 is /small. */
  operations: Operations;
  wanted: [number, number, number][];
  late: number[];
}

async function world(t: ExecutionContext<unknown>, waitTimeoutMs = 0): Promise<World> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-portable-'));
  t.teardown(() => rm(dir, { recursive: true }));
  for (const name of ['content', 'incoming']) await mkdir(join(dir, name));
  const root = makeDirectory('', 0);
  const add = (parent: TreeNode, name: string, more: Partial<Inode>) => {
    const base = { type: 'file' as const, mode: 0o644, uid: 1, gid: 2, mtimeSec: 9, mtimeNsec: 0 };
    const children = more.type === 'dir' ? { children: new Map<string, TreeNode>() } : {};
    const node: TreeNode = { name, inode: { ...base, size: 0, layer: 0, ...more }, ...children };
    parent.children!.set(name, node);
    return node;
  };
  add(root, 'large', { size: LARGE.length, digest: sha256(LARGE) });
  add(root, 'small', { size: SMALL.length, digest: sha256(SMALL), mtimeSec: -5, mtimeNsec: 7 });
  const sub = add(root, fromText('ü'), { type: 'dir' });
  add(sub, '\xff', {});
  add(sub, 'link', { type: 'symlink', target: fromText('../ö'), size: 5 });
  add(sub, 'bytes', { type: 'symlink', target: '\xff', size: 1 });
  const { bytes } = buildToc(root);
  const digestsPath = join(dir, 'contents');
  const digests = [LARGE, SMALL].map((data) => Buffer.from(sha256(data), 'hex'));
  await writeFile(digestsPath, Buffer.concat(digests));
  const places = {
    tocPath: '',
    digestsPath,
    contentDir: join(dir, 'content'),
    incomingDir: join(dir, 'incoming'),
    partialPrefix: PREFIX,
  };
  const template = new Template('sha256:x', new Toc(bytes), undefined, digestsPath, places);
  const wanted: World['wanted'] = [];
  const late: number[] = [];
  const waits: Waits = {
    waitTimeoutMs,
    onWanted: (...want) => wanted.push(want),
    onTimeout: (content) => late.push(content),
  };
  const operations = new Operations(template, waits);
  t.teardown(() => operations.close());
  return { dir, template, operations, wanted, late };
}

function errnoIn(work: () => unknown): number {
  try {
    work();
  } catch (error) {
    return errnoOf(error);
  }
  return 0;
}

async function read(operations: Operations, handle: number, offset: number, length: number) {
  const buffer = Buffer.alloc(length);
  return buffer.subarray(0, await operations.read(handle, buffer, length, offset));
}

const of = (...numbers: number[]) => Uint32Array.from(numbers);
const errnoAfter = (work: Promise<unknown>) => work.then(() => 0, errnoOf);

test('attributes, listings and links, with what the library cannot tell', async (t) => {
  const { operations } = await world(t);
  t.like(operations.getattr('/large'), { mode: 0o100644, uid: 1, gid: 2, size: LARGE.length });
  t.is(operations.getattr('/large').mtime, 9000);
  t.is(operations.getattr('/small').mtime, 0, 'no time before 1970');
  t.deepEqual(operations.readdir('/'), ['.', '..', 'large', 'small', 'ü']);
  t.deepEqual(operations.readdir('/ü'), ['.', '..', 'bytes', 'link']);
  t.is(operations.hiddenNames, 1);
  t.is(operations.readlink('/ü/link'), '../ö');
  t.is(
    errnoIn(() => operations.readlink('/ü/bytes')),
    EIO,
  );
  t.is(
    errnoIn(() => operations.getattr('/none')),
    ENOENT,
  );
  t.is(
    errnoIn(() => operations.getattr('/small/x')),
    ENOTDIR,
  );
  t.is(
    errnoIn(() => operations.getattr(`/${'n'.repeat(256)}`)),
    ENAMETOOLONG,
  );
  t.is(
    errnoIn(() => operations.readdir('/small')),
    ENOTDIR,
  );
  t.is(
    errnoIn(() => operations.open('/small', 1)),
    EROFS,
  );
  t.is(await errnoAfter(read(operations, 99, 0, 1)), EBADF);
});

test('a read waits for its parts alone, and finds them in the file of the moment', async (t) => {
  const { dir, template, operations, wanted } = await world(t);
  const handle = operations.open('/large', 0);
  const partial = join(dir, 'incoming', `${PREFIX}.0`);
  const second = read(operations, handle, PART + 10, 100);
  t.deepEqual(wanted, [[0, 1, 1]]);
  await writeFile(partial, LARGE);
  template.markParts(of(1));
  t.deepEqual(await second, LARGE.subarray(PART + 10, PART + 110));
  const across = read(operations, handle, PART - 5, 10);
  t.deepEqual(wanted.at(-1), [0, 0, 0], 'only what is missing is wanted');
  template.markParts(of(0));
  t.deepEqual(await across, LARGE.subarray(PART - 5, PART + 5));
  // Whole: it stands under its digest now, and the old file may go.
  const hex = sha256(LARGE);
  await mkdir(join(dir, 'content', hex.slice(0, 2)));
  await rename(partial, join(dir, 'content', hex.slice(0, 2), hex.slice(2)));
  template.markReady(of(0));
  t.deepEqual(await read(operations, handle, LARGE.length - 3, 100), LARGE.subarray(-3));
  t.is((await read(operations, handle, LARGE.length, 100)).length, 0);
  t.is(operations.stats().waits, 2);
  await operations.release(handle);
});

test('a content that is not durable yet is read from incoming/', async (t) => {
  const { dir, template, operations } = await world(t);
  await writeFile(join(dir, 'incoming', sha256(SMALL)), SMALL);
  template.markReady(of(1));
  const handle = operations.open('/small', 0);
  t.deepEqual(await read(operations, handle, 0, 100), SMALL);
});

test('a store that has lost a file, or holds a wrong one, is EIO and not ENOENT', async (t) => {
  const { dir, template, operations } = await world(t);
  template.markReady(of(1));
  const handle = operations.open('/small', 0);
  t.is(await errnoAfter(read(operations, handle, 0, 10)), EIO);
  await writeFile(join(dir, 'incoming', sha256(SMALL)), 'short');
  t.is(await errnoAfter(read(operations, handle, 0, 10)), EIO);
  // Mended: the same handle reads it.
  await writeFile(join(dir, 'incoming', sha256(SMALL)), SMALL);
  t.deepEqual(await read(operations, handle, 0, 5), SMALL.subarray(0, 5));
});

test('failures, bounds and ends reach those who wait', async (t) => {
  const { template, operations, late } = await world(t, 10);
  const handle = operations.open('/large', 0);
  t.is(await errnoAfter(read(operations, handle, 0, 10)), EIO);
  t.deepEqual(late, [0]);
  template.markFailed(of(0), ENOSPC);
  t.is(await errnoAfter(read(operations, handle, 0, 10)), ENOSPC);
  t.is(
    errnoIn(() => operations.open('/large', 0)),
    ENOSPC,
  );
  template.clearFailed(of(0));
  const waiting = errnoAfter(read(operations, handle, 0, 10));
  operations.endWaits();
  t.is(await waiting, EIO);
  t.is(template.waiting(), 0);
});

test('first accesses are told once, the wait of a small file with its open', async (t) => {
  const { dir, template, operations } = await world(t);
  operations.accesses.setTracing(true);
  for (const data of [SMALL, LARGE]) await writeFile(join(dir, 'incoming', sha256(data)), data);
  const small = operations.open('/small', 0);
  const reading = read(operations, small, 0, 100);
  template.markReady(of(0, 1));
  await reading;
  await operations.release(operations.open('/small', 0));
  const large = operations.open('/large', 0);
  for (const offset of [0, 100, PART, 0]) await read(operations, large, offset, 100);
  const { accesses, lost } = operations.accesses.take();
  t.is(lost, 0);
  t.deepEqual(
    accesses.map(({ kind, row, offsetBytes, readsSeen }) => [kind, row, offsetBytes, readsSeen]),
    [
      ['open', 2, 0, false],
      ['open', 1, 0, true],
      ['read', 1, 0, true],
      ['read', 1, PART, true],
    ],
  );
  t.true(accesses[0]!.waitNs > 0);
  t.is(operations.accesses.take().accesses.length, 0);
});
