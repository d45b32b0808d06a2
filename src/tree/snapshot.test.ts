// Snapshots on disk: made, found again, kept, dropped; and what a crash or another version leaves.
import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import type { FirstlightError } from '../errors/errors.ts';
import { makeDirectory } from '../image/tree.ts';
import {
  dropSnapshot,
  findLeft,
  listSnapshots,
  makeSnapshot,
  readRecord,
  resumeSnapshot,
  type SnapshotRecord,
  setState,
  snapshotDirectories,
} from './snapshot.ts';
import { Template } from './template.ts';

const NOW = { digest: 'sha256:a', source: 'app:1', mountPoint: '/mnt' };

async function world(t: ExecutionContext) {
  const snapshots = await mkdtemp(join(tmpdir(), 'firstlight-snapshots-'));
  t.teardown(() => rm(snapshots, { recursive: true }));
  const root = makeDirectory('', 0);
  root.inode.mode = 0o751;
  root.inode.uid = process.geteuid!();
  root.inode.gid = process.getegid!();
  root.inode.mtimeSec = 1_000_000_000;
  const template = new Template('sha256:a', new Toc(buildToc(root).bytes), undefined);
  const make = async (id: string, more: Partial<SnapshotRecord> = {}) => {
    const dirs = snapshotDirectories(snapshots, id);
    await makeSnapshot(dirs, template, { ...NOW, createdAt: 1, state: 'mounted', ...more });
    return dirs;
  };
  return { snapshots, make };
}

test('a new one has the attributes of the image, and its name once', async (t) => {
  const { make } = await world(t);
  const dirs = await make('a');
  const upper = await stat(dirs.upper);
  t.is(upper.mode & 0o7777, 0o751);
  t.is(upper.mtimeMs, 1e12);
  t.is((await stat(dirs.root)).mode & 0o777, 0o700);
  t.is((await t.throwsAsync<FirstlightError>(make('a')))?.kind, 'exists');
});

test('what is kept stays kept, and only a collection that means it removes it', async (t) => {
  const { make, snapshots } = await world(t);
  const dirs = await make('a');
  await setState(dirs, 'kept');
  await setState(dirs, 'dropped');
  t.is((await readRecord(dirs))?.state, 'kept');
  const found = await resumeSnapshot(dirs, { ...NOW, mountPoint: '/other' });
  t.is(found.mountPoint, '/mnt');
  t.like(await readRecord(dirs), { state: 'kept', mountPoint: '/other', createdAt: 1 });
  t.false(await dropSnapshot(dirs));
  t.true(await dropSnapshot(dirs, true));
  t.deepEqual(await readdir(snapshots), []);
});

test('changes to another image, and those without a record, are refused with the reason', async (t) => {
  const { make } = await world(t);
  const dirs = await make('a');
  const other = { ...NOW, digest: 'sha256:b' };
  const error = await t.throwsAsync<FirstlightError>(resumeSnapshot(dirs, other));
  t.is(error?.kind, 'exists');
  t.regex(error!.message, /app:1 as of sha256:a/);
  for (const text of ['', '{', '{"digest":1}', '[]']) {
    await writeFile(join(dirs.root, 'snapshot.json'), text);
    t.is(await readRecord(dirs), undefined, text);
    t.is((await t.throwsAsync<FirstlightError>(resumeSnapshot(dirs, NOW)))?.kind, 'not-found');
  }
});

test('after a kill the newest of the same image and directory is found, and nothing else', async (t) => {
  const { make, snapshots } = await world(t);
  await make('old', { createdAt: 5 });
  await make('new', { createdAt: 7 });
  await make('used', { createdAt: 9 });
  await make('kept', { createdAt: 9, state: 'kept' });
  await make('dropped', { createdAt: 9, state: 'dropped' });
  await make('elsewhere', { createdAt: 9, mountPoint: '/other' });
  await make('image', { createdAt: 9, digest: 'sha256:b' });
  // Half made when its daemon was killed; and a file that is none of ours.
  await mkdir(join(snapshots, 'half'));
  await writeFile(join(snapshots, 'file'), '');
  t.is(await findLeft(snapshots, NOW, (id) => id === 'used'), 'new');
  t.is(await findLeft(snapshots, { ...NOW, mountPoint: '/no' }, () => false), undefined);
  const listed = await listSnapshots(snapshots);
  t.is(listed.length, 9);
  t.is(listed.filter(({ record }) => record === undefined).length, 2);
});
