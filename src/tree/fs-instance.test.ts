// What becomes of the changes when a writable mount ends, with a session that ends as it is told. Real
// mounts are in test/e2e.
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { quietLog } from '../../test/receive/fixture.ts';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { makeDirectory } from '../image/tree.ts';
import type { NativeTemplate, SessionFeatures } from '../native/index.ts';
import { FsInstance } from './fs-instance.ts';
import type { Session, SessionRequest } from './session.ts';
import { readRecord, snapshotDirectories } from './snapshot.ts';
import { Template } from './template.ts';

interface World {
  instance: FsInstance;
  request: SessionRequest;
  snapshots: string;
  ended: (string | undefined)[];
}

/** A mount of `rw: 'fuse'` that has been started and written to. */
async function world(t: ExecutionContext): Promise<World> {
  const scratch = await mkdtemp(join(tmpdir(), 'fl-instance-'));
  t.teardown(() => rm(scratch, { recursive: true, force: true }));
  const root = makeDirectory('', 0);
  Object.assign(root.inode, { uid: process.getuid?.(), gid: process.getgid?.() });
  const twin = { close: () => undefined } as unknown as NativeTemplate;
  const template = new Template('sha256:x', new Toc(buildToc(root).bytes), twin);
  let request: SessionRequest | undefined;
  const session = {
    start: async () => ({}) as SessionFeatures,
    unmount: async () => request?.onClosed(undefined),
  } as unknown as Session;
  const ended: World['ended'] = [];
  const instance = new FsInstance({
    id: 'one',
    template,
    mountPoint: join(scratch, 'mnt'),
    source: 'app:1',
    rw: 'fuse',
    snapshots: scratch,
    makeSession: (_, wanted) => {
      request = wanted;
      return session;
    },
    waitTimeoutMs: 0,
    wanted: () => undefined,
    onEnded: (error) => ended.push(error),
    log: quietLog().log,
  });
  await instance.start();
  const { upper } = snapshotDirectories(scratch, 'one');
  t.is(request?.writable?.upper, upper);
  await writeFile(join(upper, 'f'), 'mine');
  return { instance, request: request!, snapshots: scratch, ended };
}

const stateOf = async ({ snapshots }: World) =>
  (await readRecord(snapshotDirectories(snapshots, 'one')))?.state;

test('an ordinary end removes what was written, unless it is to be kept', async (t) => {
  const dropped = await world(t);
  t.is(await stateOf(dropped), 'mounted');
  await dropped.instance.teardown();
  t.deepEqual(await readdir(dropped.snapshots), []);
  await dropped.instance.released;
  const kept = await world(t);
  await kept.instance.teardown({ keep: true });
  t.is(await stateOf(kept), 'kept');
});

test('what was detached while in use stays until nobody uses it', async (t) => {
  const at = await world(t);
  await at.instance.teardown({ detach: true });
  t.is(await stateOf(at), 'dropped');
});

test('a session that dies leaves what was written for the next mount', async (t) => {
  const at = await world(t);
  at.request.onClosed('its thread has died');
  t.deepEqual(at.ended, ['its thread has died']);
  await at.instance.teardown({ detach: true });
  t.is(await stateOf(at), 'mounted');
  t.deepEqual(await readdir(snapshotDirectories(at.snapshots, 'one').upper), ['f']);
});
