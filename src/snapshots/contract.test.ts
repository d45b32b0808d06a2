// What containerd may rely on, call by call, over gRPC: kinds and their order, parents, labels, lists, codes.
// What the trees look like when they are mounted stands in test/e2e/snapshotter-contract.test.ts.
import { mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import test, { type ExecutionContext } from 'ava';
import { makeDeep } from '../store/testkit-deep.ts';
import { type Harness, snapshotter } from './testkit.ts';
import type { Mount } from './types.ts';

/** The call must fail with this code; its text. */
async function refuses(t: ExecutionContext, code: keyof typeof status, call: Promise<unknown>) {
  const error = await t.throwsAsync<Error & { code: number; details: string }>(call);
  t.is(status[error?.code ?? 0], code, error?.details);
  return error?.details ?? '';
}

/** The directory that an active snapshot is written to. */
function upper([mount]: Mount[]): string {
  if (mount?.type === 'bind') return mount.source;
  return mount?.options.find((option) => option.startsWith('upperdir='))?.slice(9) ?? '';
}

/** Commits a layer with one file. */
async function layer({ client }: Harness, name: string, parent = ''): Promise<void> {
  const mounts = await client.prepare(`${name}-key`, parent);
  await writeFile(join(upper(mounts), name), name);
  await client.commit(name, `${name}-key`);
}

test('a first layer is a directory; those above are an overlay of what is below', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  const first = await client.prepare('k1');
  t.like(first, [{ type: 'bind', target: '', options: ['rw', 'rbind'] }]);
  t.true((await stat(first[0]!.source)).isDirectory());
  await client.commit('one', 'k1');
  await layer(h, 'two', 'one');
  const mounts = await client.prepare('k3', 'two');
  t.like(mounts, [{ type: 'overlay', source: 'overlay' }]);
  t.deepEqual(await client.mounts('k3'), mounts);
  const options = Object.fromEntries(mounts[0]!.options.map((o) => o.split('=', 2)));
  t.regex(options.lowerdir, /^\S+\/2\/fs:\S+\/1\/fs$/);
  t.regex(options.upperdir, /\/3\/fs$/);
  t.regex(options.workdir, /\/3\/work$/);
  t.is(options.index, 'off');
});

test('views are read-only', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one');
  await layer(h, 'two', 'one');
  const { client } = h;
  t.like(await client.view('v0'), [{ type: 'bind', options: ['ro', 'rbind'] }]);
  t.like(await client.view('v1', 'one'), [{ type: 'bind', options: ['ro', 'rbind'] }]);
  const [both] = await client.view('v2', 'two');
  t.false(both!.options.some((option) => /^(upper|work)dir=/.test(option)));
  await refuses(t, 'FAILED_PRECONDITION', client.commit('three', 'v2'));
  await refuses(t, 'INVALID_ARGUMENT', client.prepare('k', 'v2'));
});

test('the root of a layer keeps the owner and permissions of the one below', async (t) => {
  const h = await snapshotter(t);
  const { chmod, chown } = await import('node:fs/promises');
  const first = upper(await h.client.prepare('k1'));
  await chmod(first, 0o1711);
  if (process.getuid?.() === 0) await chown(first, 12, 34);
  await h.client.commit('one', 'k1');
  const second = await stat(upper(await h.client.prepare('k2', 'one')));
  t.is(second.mode & 0o7777, 0o1711);
  if (process.getuid?.() === 0) t.deepEqual([second.uid, second.gid], [12, 34]);
});

test('what does not exist, exists already, or is of another kind has its own code', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  await client.prepare('active', 'one');
  await refuses(t, 'NOT_FOUND', client.prepare('k', 'nothing'));
  await refuses(t, 'INVALID_ARGUMENT', client.prepare('k', 'active'));
  await refuses(t, 'ALREADY_EXISTS', client.prepare('active', 'one'));
  await refuses(t, 'ALREADY_EXISTS', client.view('one'));
  await refuses(t, 'ALREADY_EXISTS', client.commit('one', 'active'));
  await refuses(t, 'NOT_FOUND', client.commit('two', 'nothing'));
  await refuses(t, 'FAILED_PRECONDITION', client.commit('two', 'one'));
  await refuses(t, 'FAILED_PRECONDITION', client.mounts('one'));
  for (const method of ['Mounts', 'Stat', 'Usage', 'Remove']) {
    await refuses(t, 'NOT_FOUND', client.call(method, { key: 'nothing' }));
    await refuses(t, 'INVALID_ARGUMENT', client.call(method, { key: '' }));
  }
  await refuses(t, 'INVALID_ARGUMENT', client.prepare(''));
  await refuses(t, 'INVALID_ARGUMENT', client.commit('', 'active'));
  t.deepEqual((await client.list()).keys, ['one', 'active'], 'nothing of it has changed anything');
  const directories = await readdir(join(h.root, 'containerd/snapshots'));
  t.deepEqual(directories.sort(), ['1', '2']);
});

test('a snapshot that others stand on is not removed', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  await layer(h, 'two', 'one');
  await client.prepare('three', 'two');
  for (const key of ['one', 'two']) {
    t.regex(await refuses(t, 'FAILED_PRECONDITION', client.remove(key)), /remove those first/);
  }
  for (const key of ['three', 'two', 'one']) await client.remove(key);
  t.deepEqual(await client.list(), { keys: [], messages: 1 });
  t.deepEqual(await readdir(join(h.root, 'containerd/snapshots')), []);
});

test('stat and update: labels as a whole, one by one, and nothing else', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  await client.prepare('k', 'one', { a: '1', 'b.c': '2' });
  const before = await client.stat('k');
  t.like(before, { name: 'k', parent: 'one', kind: 2, labels: { a: '1', 'b.c': '2' } });
  t.true(Math.abs(before.createdAt!.seconds - Date.now() / 1000) < 600);
  const labels = { a: '9', 'b.c': '3', d: '4' };
  t.deepEqual((await client.update({ name: 'k', labels }, ['labels.b.c'])).labels, {
    a: '1',
    'b.c': '3',
  });
  t.deepEqual((await client.update({ name: 'k', labels: {} }, ['labels.a'])).labels, {
    'b.c': '3',
  });
  t.deepEqual((await client.update({ name: 'k', labels }, ['labels'])).labels, labels);
  t.deepEqual((await client.update({ name: 'k', labels: { z: '1' } })).labels, { z: '1' });
  await refuses(t, 'INVALID_ARGUMENT', client.update({ name: 'k', labels }, ['parent']));
  await refuses(t, 'NOT_FOUND', client.update({ name: 'nothing', labels }));
  t.deepEqual((await client.stat('k')).labels, { z: '1' });
  t.deepEqual((await client.stat('k')).createdAt, before.createdAt);
});

test('labels go with a commit, or come with it', async (t) => {
  const { client } = await snapshotter(t);
  await client.prepare('k1', '', { a: '1' });
  await client.commit('one', 'k1');
  t.deepEqual((await client.stat('one')).labels, { a: '1' });
  await client.prepare('k2', '', { a: '1' });
  await client.commit('two', 'k2', { b: '2' });
  t.like(await client.stat('two'), { labels: { b: '2' }, kind: 3, parent: '' });
});

test('a list is filtered, and streamed in parts', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  const keys = Array.from({ length: 250 }, (_, i) => `k${i}`);
  for (const key of keys)
    await client.prepare(key, 'one', { odd: String(Number(key.slice(1)) % 2) });
  t.deepEqual((await client.list()).keys, ['one', ...keys]);
  t.is((await client.list()).messages, 3);
  t.is((await client.list('kind==active,labels.odd==1')).keys.length, 125);
  t.deepEqual((await client.list('name==k7', 'kind==committed')).keys, ['one', 'k7']);
  t.deepEqual((await client.list('parent==""', 'parent==two')).keys, ['one']);
  await refuses(t, 'INVALID_ARGUMENT', client.list('kind=='));
});

test('a commit on another parent than the one that it was prepared on is refused, and says why', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  await layer(h, 'other');
  // As containerd 2.2 does where it takes the snapshotter for one that can rebase.
  const said = [];
  for (const [key, parent] of [
    ['on-nothing', ''],
    ['on-other', 'other'],
  ] as const) {
    await client.prepare(key, parent);
    said.push(await refuses(t, 'INVALID_ARGUMENT', client.commit('two', key, {}, 'one')));
  }
  t.regex(said[0]!, /prepared on none.*leave rebase out of the proxy plugin's capabilities/);
  t.regex(said[1]!, /prepared on other/);
  await refuses(t, 'NOT_FOUND', client.stat('two'));
  await client.commit('two', 'on-other', {}, 'other');
  t.is((await client.stat('two')).parent, 'other', 'the same parent, said again, is none other');
});

test('usage is that of the layer alone, live while it is written and fixed by the commit', async (t) => {
  const { client } = await snapshotter(t);
  const directory = upper(await client.prepare('k1'));
  const empty = await client.usage('k1');
  t.is(empty.inodes, 1);
  await writeFile(join(directory, 'file'), Buffer.alloc(100_000, 1));
  await mkdir(join(directory, 'dir'));
  const { link } = await import('node:fs/promises');
  await link(join(directory, 'file'), join(directory, 'dir/same'));
  const full = await client.usage('k1');
  t.is(full.inodes, 3);
  t.true(full.size >= 100_000 + empty.size && full.size < 200_000, `${full.size}`);
  await client.commit('one', 'k1');
  t.deepEqual(await client.usage('one'), full);
  await client.prepare('k2', 'one');
  t.is((await client.usage('k2')).inodes, 1);
});

test('a layer that is deeper than a path can say is measured, committed and removed', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  const mounts = await client.prepare('k1');
  await makeDeep(join(upper(mounts), 'deep'), 400, 'a name of some bytes');
  // The root, and a directory and a file for each level.
  t.is((await client.usage('k1')).inodes, 1 + 2 * 401);
  await client.commit('one', 'k1');
  t.is((await client.usage('one')).inodes, 1 + 2 * 401);
  await client.remove('one');
  t.deepEqual(await readdir(join(h.root, 'containerd/snapshots')), []);
  await makeDeep(join(h.root, 'containerd/snapshots/77/fs'), 100, 'n'.repeat(60));
  await client.call('Cleanup', {});
  t.deepEqual(await readdir(join(h.root, 'containerd/snapshots')), []);
});

test('a name that would remove another file where the layer is unpacked is not committed', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  const mounts = await client.prepare('k', 'one');
  await mkdir(join(upper(mounts), 'd'));
  await writeFile(join(upper(mounts), 'd/.wh.passwd'), '');
  const said = await refuses(t, 'INVALID_ARGUMENT', client.commit('two', 'k'));
  t.regex(said, /\.wh\.passwd cannot be in a layer.*rename or remove it/);
  t.like(await client.stat('k'), { kind: 2 }, 'it can be mended');
  await rm(join(upper(mounts), 'd/.wh.passwd'));
  await writeFile(join(upper(mounts), 'd/x.wh.y'), '');
  await client.commit('two', 'k');
});

test('usage while files come and go', async (t) => {
  const { client } = await snapshotter(t);
  const directory = upper(await client.prepare('k1'));
  let going = true;
  const change = async () => {
    for (let i = 0; going; i++) {
      const path = join(directory, `d${i % 7}`);
      await mkdir(path, { recursive: true });
      await writeFile(join(path, 'file'), 'x');
      await rm(path, { recursive: true, force: true });
    }
  };
  const changing = change();
  for (let i = 0; i < 50; i++) t.true((await client.usage('k1')).inodes >= 1);
  going = false;
  await changing;
});

test('a hundred at once', async (t) => {
  const h = await snapshotter(t);
  const { client } = h;
  await layer(h, 'one');
  const keys = Array.from({ length: 100 }, (_, i) => `k${i}`);
  const made = await Promise.all(keys.map((key) => client.prepare(key, 'one')));
  t.is(new Set(made.map(upper)).size, 100);
  // Of a hundred with one key, one is made.
  const same = await Promise.allSettled(keys.map(() => client.prepare('same', 'one')));
  t.is(same.filter(({ status: how }) => how === 'fulfilled').length, 1);
  const commits = await Promise.allSettled(keys.map((key) => client.commit('two', key)));
  t.is(commits.filter(({ status: how }) => how === 'fulfilled').length, 1);
  await Promise.all((await client.list('kind==active')).keys.map((key) => client.remove(key)));
  t.deepEqual((await client.list()).keys.sort(), ['one', 'two']);
  t.is((await readdir(join(h.root, 'containerd/snapshots'))).length, 2);
});

test('128 layers', async (t) => {
  const h = await snapshotter(t);
  let parent = '';
  for (let i = 0; i < 128; i++) {
    await layer(h, `l${i}`, parent);
    parent = `l${i}`;
  }
  const [mount] = await h.client.prepare('top', parent);
  const lowers = mount!.options.find((option) => option.startsWith('lowerdir='))!.split(':');
  t.is(lowers.length, 128);
  const [first, last] = [lowers[0]!.replace('lowerdir=', ''), lowers.at(-1)!];
  t.deepEqual(await readdir(first), ['l127']);
  t.deepEqual(await readdir(last), ['l0']);
});

test('user namespaces are refused, and labels that are too long', async (t) => {
  const { client } = await snapshotter(t);
  const label = 'containerd.io/snapshot/uidmapping';
  const why = await refuses(
    t,
    'UNIMPLEMENTED',
    client.prepare('k', '', { [label]: '0:1000:65536' }),
  );
  t.regex(why, /does not shift the owners/);
  await refuses(t, 'INVALID_ARGUMENT', client.prepare('k', '', { long: 'x'.repeat(5000) }));
  t.deepEqual((await client.list()).keys, []);
});

test('a layer that is asked for lazily is unpacked in the ordinary way where there is no server', async (t) => {
  const { client, metrics } = await snapshotter(t);
  const labels = { 'containerd.io/snapshot.ref': `sha256:${'1'.repeat(64)}` };
  const mounts = await client.prepare('k8s.io/1/extract-1', '', labels);
  t.is(mounts[0]?.type, 'bind');
  const counted = await metrics.pulls.get();
  t.like(counted.values[0], { value: 1, labels: { way: 'ordinary', reason: 'no-server' } });
});

test('the same keys are seen with any namespace in the request, and with none', async (t) => {
  const { client } = await snapshotter(t);
  await client.prepare('one/1/key', '', {}, 'one');
  await client.prepare('two/2/key', '', {}, 'two');
  await client.prepare('three/3/key');
  t.is((await client.list()).keys.length, 3);
  await client.remove('one/1/key');
  t.is((await client.list()).keys.length, 2);
});

test('everything is there after a restart, and what a crash left is cleared away', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one');
  const mounts = await h.client.prepare('k', 'one', { a: '1' });
  await writeFile(join(upper(mounts), 'kept'), 'kept');
  const directory = join(h.root, 'containerd/snapshots');
  // As after a kill: one that was being made, and one whose row was not committed.
  await mkdir(join(directory, 'new-0123456789abcdef/fs'), { recursive: true });
  await mkdir(join(directory, '77/fs'), { recursive: true });
  await h.restart();
  t.deepEqual((await readdir(directory)).sort(), ['1', '2']);
  t.deepEqual((await h.client.list()).keys, ['one', 'k']);
  t.deepEqual((await h.client.stat('k')).labels, { a: '1' });
  t.deepEqual(await h.client.mounts('k'), mounts);
  t.deepEqual(await readdir(upper(mounts)), ['kept']);
  await h.client.prepare('next', 'one');
  t.deepEqual((await readdir(directory)).sort(), ['1', '2', '3'], 'numbers are not used twice');
});

test('Cleanup removes what no record names, and nothing that is being made', async (t) => {
  const h = await snapshotter(t);
  const directory = join(h.root, 'containerd/snapshots');
  await mkdir(join(directory, '99/fs'), { recursive: true });
  const work: Promise<unknown>[] = [];
  for (let i = 0; i < 20; i++) {
    work.push(h.client.prepare(`k${i}`), h.client.call('Cleanup', {}));
  }
  await Promise.all(work);
  const left = await readdir(directory);
  t.is(left.length, 20);
  t.false(left.includes('99'));
});
