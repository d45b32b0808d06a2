// Collections of changes against mounts that look for them at the same moment.
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { makeDeep } from '../store/testkit-deep.ts';
import { type SnapshotRecord, writeRecord } from '../tree/snapshot.ts';
import { Changes } from './changes.ts';
import type { MountRequest } from './control.ts';

const RECORD: SnapshotRecord = {
  digest: 'sha256:a',
  source: 'app:1',
  mountPoint: '/mnt',
  createdAt: 1,
  state: 'mounted',
};

async function world(t: ExecutionContext) {
  const snapshots = await mkdtemp(join(tmpdir(), 'firstlight-changes-'));
  t.teardown(() => rm(snapshots, { recursive: true }));
  const used = new Set<string>();
  const changes = new Changes(snapshots, (id) => used.has(id));
  const make = async (id: string, state: SnapshotRecord['state'] = 'mounted') => {
    const root = join(snapshots, id);
    await mkdir(join(root, 'upper'), { recursive: true });
    await writeFile(join(root, 'upper/written'), 'x');
    await writeRecord({ root }, { ...RECORD, state });
  };
  /** What a mount at the directory would find, held from that moment. */
  const find = (request: Partial<MountRequest> = {}) =>
    changes.find(
      { rw: 'overlay', directory: '/mnt', ...request } as MountRequest,
      'sha256:a',
      (id) => used.add(id),
    );
  const isWhole = async (id: string) =>
    (await readdir(join(snapshots, id)).catch(() => [] as string[])).includes('snapshot.json') &&
    (await readdir(join(snapshots, id, 'upper'))).includes('written');
  return { snapshots, used, changes, make, find, isWhole };
}

test('what a mount finds is whole, whenever a collection comes; what a collection removes is not found', async (t) => {
  const { snapshots, used, changes, make, find, isWhole } = await world(t);
  let found = 0;
  for (let round = 0; round < 60; round++) {
    await make('left');
    // One of them is ahead by more or fewer turns of the event loop.
    const late = async <T>(turns: number, work: () => Promise<T>) => {
      for (let turn = 0; turn < turns; turn++)
        await new Promise((resolve) => setImmediate(resolve));
      return work();
    };
    const [id] = await Promise.all([
      late(round % 7, () => find()),
      late(round % 5, () => changes.removeUnused(false)),
    ]);
    if (id === undefined) t.deepEqual(await readdir(snapshots), []);
    else {
      found++;
      t.true(await isWhole(id), `round ${round}`);
    }
    used.clear();
    await changes.removeUnused(false);
  }
  t.log(`found in ${found} of 60 rounds`);
});

test('a mount by name waits for a removal of that name, and begins anew', async (t) => {
  const { snapshots, used, changes, make, find } = await world(t);
  await make('mine', 'kept');
  // A removal that takes its time.
  await makeDeep(join(snapshots, 'mine/upper/deep'), 60, 'n'.repeat(100));
  const removal = changes.removeUnused(true);
  // It has begun: its record goes first.
  while (
    (await readdir(join(snapshots, 'mine')).catch(() => [] as string[])).includes('snapshot.json')
  ) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  used.add('mine');
  t.is(await find({ name: 'mine' }), undefined);
  t.deepEqual(await readdir(snapshots), [], 'all of it has gone by then');
  t.is(await removal, 1);
});

test('what a crash leaves of a removal is found by nobody', async (t) => {
  const { snapshots, changes, make, find } = await world(t);
  await make('left');
  // As after a kill in the middle: the record is the first to go.
  await rm(join(snapshots, 'left/snapshot.json'));
  t.is(await find(), undefined);
  t.is(await changes.removeUnused(false), 1);
  t.deepEqual(await readdir(snapshots), []);
});
