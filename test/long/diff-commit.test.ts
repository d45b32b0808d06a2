// What a mount has changed: as `diff` lists it, as the layer that `commit` writes, accepted by umoci and
// containerd, and found again after an unmount or a kill.
import { readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { SnapshotStatus } from '../../src/daemon/control.ts';
import { behindProxy, HEADER_BYTES, MissedError, untilMet } from '../lib/arriving.ts';
import { Containerd } from '../lib/containerd.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { layeredImage } from '../lib/layered-image.ts';
import { must, run, until } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

/** Every kind of change, by a program in the mount. */
const CHANGES = `
  set -e
  cd "$0"
  echo more >>etc/hosts
  rm -r etc/conf.d; mkdir etc/conf.d; echo c >etc/conf.d/c
  rm app/link; mkdir app/link; echo z >app/link/z
  rm -r old/below; echo file >old/below
  chmod 700 old/x; setfattr -n user.new -v 1 old/x
  mkdir -p new/deep; echo n >new/n; ln new/n new/deep/m; ln -s ../n new/deep/s
  mkfifo new/pipe; mknod new/zero c 1 5; touch -d '1960-01-02 03:04:05.678901234' new/n
  : >"new/$(printf 'n%.0s' $(seq 200))"
  chown 1000:3000000 new/deep
  rm app/large
`;

const LONG = 'n'.repeat(200);
const CHANGED = [
  ...['C /app', 'D /app/large', 'C /app/link', 'A /app/link/z'],
  ...['C /etc', 'C /etc/conf.d', 'D /etc/conf.d/a', 'A /etc/conf.d/c', 'D /etc/conf.d/deep'],
  ...['C /etc/hosts', 'A /new', 'A /new/deep', 'A /new/deep/m', 'A /new/deep/s', 'A /new/n'],
  ...[`A /new/${LONG}`, 'A /new/pipe', 'A /new/zero', 'C /old', 'C /old/below', 'C /old/x'],
];

/** Kernel overlayfs shows them to root; they are our tree's own. */
const OWN_MARKS = ['--xattr-skip', 'trusted.firstlight.'];

const lines = (text: string) => text.split('\n').filter((line) => line !== '');

async function changed(
  t: ExecutionContext<unknown>,
  rw: string,
): Promise<{ stage: Stage; dir: string; layout: string }> {
  const stage = await Stage.open(t);
  const layout = await layeredImage(stage.dir);
  await stage.serve();
  await stage.addImage(`oci:${layout}:1`, 'app:1');
  const dir = await stage.mount('app:1', ['--rw', rw, '--wait']);
  await must('bash', ['-c', CHANGES, dir]);
  return { stage, dir, layout };
}

/** The tree of an image of a layout as umoci unpacks it. */
async function unpacked(stage: Stage, layout: string, tag: string): Promise<string> {
  const root = join(stage.dir, `unpacked-${tag}`);
  await must('umoci', ['raw', 'unpack', '--image', `${layout}:${tag}`, root]);
  return listTree(root);
}

for (const rw of ['overlay', 'fuse']) {
  test(`--rw ${rw}: the changes are listed, and the layer of them makes the same tree`, async (t) => {
    const { stage, dir, layout } = await changed(t, rw);
    t.deepEqual(lines(await stage.must(['diff', dir])), CHANGED);
    const json = await stage.json<{ kind: string; path: string }[]>(['diff', dir]);
    t.deepEqual(
      json.map(({ kind, path }) => `${kind} ${path}`),
      CHANGED,
    );
    const seen = await listTree(dir);

    // Into a layout that has the old layers: umoci unpacks what the container sees.
    await stage.must(['commit', dir, '--to', `oci:${layout}:2`]);
    t.deepEqual(treeDifference(seen, await unpacked(stage, layout, '2')), []);
    // Into an empty one: the same tree, with the old files packed anew.
    const fresh = join(stage.dir, 'fresh');
    const packed = await stage.run(['commit', dir, '--to', `oci:${fresh}:2`]);
    t.regex(packed.stderr, /--base keeps its own layers/);
    t.deepEqual(treeDifference(seen, await unpacked(stage, fresh, '2')), []);

    // To the server, which has the old layers: only the new one travels; another worker gets the same.
    const made = await stage.json<{ digest: string; base: string }>(['commit', dir, 'app:2']);
    t.is(made.base, 'server');
    const again = await stage.json<{ digest: string }>(['commit', dir, 'app:3']);
    t.is(again.digest, made.digest, 'the same changes are the same image');
    const other = await stage.mount('app:2', ['--rw', 'off'], 'other');
    t.deepEqual(treeDifference(seen, await listTree(other)), []);
  });
}

test('containerd imports a committed image, with its old layers, and mounts the same tree', async (t) => {
  const { stage, dir, layout } = await changed(t, 'overlay');
  const copy = join(stage.dir, 'copy');
  await stage.must(['commit', dir, '--to', `oci:${copy}:2`, '--base', `oci:${layout}:1`]);
  const before = JSON.parse(await manifestOf(layout, '1')) as { layers: { digest: string }[] };
  const after = JSON.parse(await manifestOf(copy, '2')) as { layers: { digest: string }[] };
  t.deepEqual(
    after.layers.slice(0, -1).map(({ digest }) => digest),
    before.layers.map((l) => l.digest),
  );
  const tar = join(stage.dir, 'copy.tar');
  await must('tar', ['-C', copy, '-cf', tar, '.']);
  const containerd = await Containerd.start(stage, join(stage.dir, 'none.sock'), {
    snapshotter: 'overlayfs',
  });
  await containerd.ctr([
    'images',
    'import',
    '--snapshotter',
    'overlayfs',
    '--base-name',
    'app',
    tar,
  ]);
  const target = await stage.mountPoint('imported');
  await containerd.ctr(['images', 'mount', '--snapshotter', 'overlayfs', 'app:2', target]);
  const imported = await listTree(target);
  await containerd.ctr(['images', 'unmount', target]);
  t.deepEqual(treeDifference(asContainerd(await listTree(dir)), asContainerd(imported)), []);
});

/** containerd makes times before 1970 the first of 1970, and gives the root the time of its unpacking. */
function asContainerd(list: string): string {
  return list
    .replace(/"mtime_ns": -\d+/g, '"mtime_ns": 0')
    .replace(/"mtime_ns": \d+, "path": "\."/, '"mtime_ns": 0, "path": "."');
}

async function manifestOf(layout: string, tag: string): Promise<string> {
  const index = JSON.parse(await readFile(join(layout, 'index.json'), 'utf8')) as {
    manifests: { digest: string; annotations: Record<string, string> }[];
  };
  const entry = index.manifests.find(
    ({ annotations }) => annotations['org.opencontainers.image.ref.name'] === tag,
  );
  return readFile(join(layout, 'blobs', entry!.digest.replace(':', '/')), 'utf8');
}

test('a renamed directory of the image is told and written whole', async (t) => {
  const { stage, dir, layout } = await changed(t, 'fuse');
  await must('sh', ['-c', 'cd "$0" && mv old moved && mv app/two moved/', dir]);
  const listed = lines(await stage.must(['diff', dir]));
  t.deepEqual(
    listed.filter((line) => /old|moved|two/.test(line)),
    ['D /app/two', 'A /moved', 'A /moved/below', 'A /moved/two', 'A /moved/x', 'D /old'],
  );
  await stage.must(['commit', dir, '--to', `oci:${layout}:3`]);
  t.deepEqual(treeDifference(await listTree(dir), await unpacked(stage, layout, '3')), []);
});

test('what is asked wrongly of diff and commit is said', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const off = await stage.mount('small:1', ['--rw', 'off'], 'off');
  const rw = await stage.mount('small:1', ['--wait'], 'rw');
  const fails = async (args: string[], code: number, words: RegExp) => {
    const ended = await stage.run(args);
    t.is(ended.code, code, ended.stderr);
    t.regex(ended.stderr, words);
  };
  await fails(['diff', off], 2, /read-only/);
  await fails(['diff', join(stage.dir, 'none')], 3, /firstlight ls/);
  await fails(['commit', rw], 2, /NAME:TAG/);
  await fails(['commit', rw, 'new:1'], 2, /nothing has changed/);
  await must('touch', [join(rw, 'new')]);
  await fails(['commit', rw, '--to', `rootfs:${image.tar}`], 2, /oci:DIR:TAG/);
  const other = await layeredImage(stage.dir);
  const out = `oci:${join(stage.dir, 'out')}:1`;
  await fails(
    ['commit', rw, '--to', out, '--base', `oci:${other}:1`],
    2,
    /--base is not the image/,
  );
  // A server that has never seen the image gets all of it.
  await stage.serve({ data: join(stage.dir, 'data-2') });
  const made = await stage.json<{ base: string }>(['commit', rw, 'new:1']);
  t.is(made.base, 'packed');
  const mounted = await stage.mount('new:1', ['--rw', 'off'], 'mounted');
  t.deepEqual(treeDifference(await listTree(rw), await listTree(mounted)), []);
});

test('a commit that finds no room, or is ended, leaves no half a layer', async (t) => {
  const stage = await Stage.open(t);
  const layout = await layeredImage(stage.dir);
  await stage.serve();
  await stage.addImage(`oci:${layout}:1`, 'app:1');
  const dir = await stage.mount('app:1', ['--wait']);
  await must('sh', ['-c', 'head -c 2000000 /dev/urandom >"$0/large"', dir]);
  const small = await stage.mountPoint('small');
  await must('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', small]);
  stage.onClose(async () => void (await must('umount', [small])));
  const full = await stage.run(['commit', dir, '--to', `oci:${small}:2`]);
  t.is(full.code, 7, full.stderr);
  const files = await must('find', [small, '-type', 'f', '-printf', '%f\n']);
  t.deepEqual(lines(files), ['oci-layout']);

  // Ctrl-C while it reads: 8 GiB of holes take their time.
  await must('truncate', ['-s', '8G', join(dir, 'holes')]);
  await untilMet(t, async (round) => {
    const target = join(stage.dir, `target-${round}`);
    const client = stage.start(['commit', dir, '--to', `oci:${target}:2`]);
    const blobs = () => run('find', [join(target, 'blobs'), '-type', 'f']);
    await until('it writes', async () => !client.running || (await blobs()).stdout.length > 0);
    client.child.kill('SIGINT');
    const { code, stderr } = await client.ended;
    if (code === 0) throw new MissedError('it had written all before the signal');
    t.is(code, 130, stderr);
    t.is((await blobs()).stdout.toString(), '');
  });
});

for (const rw of ['overlay', 'fuse']) {
  test(`--rw ${rw}: changes that were kept are found again by their name, and go when they are told to`, async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    await stage.serve();
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    const options = ['--rw', rw, '--name', 'work'];
    const dir = await stage.mount('small:1', options);
    await must('sh', ['-c', 'echo mine >"$0/mine"; rm -r "$0/medium"', dir]);
    const taken = await stage.run(['mount', 'small:1', await stage.mountPoint('b'), ...options]);
    t.is(taken.code, 13, taken.stderr);
    const seen = await listTree(dir, ['--no-content', ...OWN_MARKS]);
    t.regex(await stage.must(['umount', '--keep', dir]), /kept as work/);
    const state = async () => {
      const { snapshots } = await stage.json<{ snapshots: SnapshotStatus[] }>(['ls']);
      return snapshots.map(({ id, state }) => `${id} ${state}`);
    };
    t.deepEqual(await state(), ['work kept']);
    t.is((await stage.json<{ snapshots: number }>(['gc'])).snapshots, 0);
    t.deepEqual(lines(await stage.must(['diff', 'work'])), ['D /medium', 'A /mine']);

    // Another directory, the other way to write, the same changes; a plain unmount does not drop what was kept.
    const other = ['--rw', rw === 'fuse' ? 'overlay' : 'fuse', '--name', 'work'];
    const again = await stage.mount('small:1', other, 'again');
    t.deepEqual(treeDifference(seen, await listTree(again, ['--no-content', ...OWN_MARKS])), []);
    t.deepEqual(await state(), ['work mounted']);
    t.is((await stage.json<{ snapshots: number }>(['gc', '--snapshots'])).snapshots, 0);
    await stage.must(['umount', again]);
    t.deepEqual(await state(), ['work kept']);
    t.is((await stage.json<{ snapshots: number }>(['gc', '--snapshots'])).snapshots, 1);
    t.deepEqual(await state(), []);
  });
}

test('changes to one image are not mixed into another', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const dir = await stage.mount('small:1', ['--name', 'work']);
  await must('touch', [join(dir, 'mine')]);
  await stage.must(['umount', '--keep', dir]);
  await must('tar', ['-C', join(stage.dir, 'small-root'), '-cf', 'other.tar', 'small'], {
    cwd: stage.dir,
  });
  await stage.addImage(`rootfs:${join(stage.dir, 'other.tar')}`, 'other:1');
  const ended = await stage.run(['mount', 'other:1', dir, '--name', 'work']);
  t.is(ended.code, 13, ended.stderr);
  t.regex(ended.stderr, /another image: small:1 as of sha256:/);
});

test('after kill -9 a mount at the same directory finds what was written', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const dir = await stage.mount('small:1', ['--wait']);
  await must('sh', ['-c', 'echo mine >"$0/mine"; sync "$0/mine"', dir]);
  process.kill(await stage.daemonPid(), 'SIGKILL');
  await stage.must(['mount', 'small:1', dir]);
  t.is(await must('cat', [join(dir, 'mine')]), 'mine\n');
  await stage.must(['umount', dir]);
  await stage.must(['mount', 'small:1', dir]);
  t.is((await run('cat', [join(dir, 'mine')])).code, 1, 'dropped by the unmount');
});

for (const rw of ['off', 'overlay']) {
  test(`--rw ${rw}: an unmount leaves alone what somebody else has mounted over it`, async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    await stage.serve();
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    const dir = await stage.mount('small:1', ['--rw', rw]);
    await must('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'foreign', dir]);
    const ended = await stage.run(['umount', dir]);
    t.is(ended.code, 6, ended.stderr);
    t.regex(ended.stderr, /another mount \(tmpfs, foreign\) stands over/);
    t.is((await run('mountpoint', ['-q', dir])).code, 0);
    await must('umount', [dir]);
    await stage.must(['umount', dir]);

    // Ours gone, theirs in its place: the daemon lets go of its own and touches nothing.
    await stage.must(['mount', 'small:1', dir, '--rw', rw]);
    await must('umount', [dir]);
    await must('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'foreign', dir]);
    await stage.run(['umount', dir]);
    await until('nothing of ours is left', async () => (await stage.status()).mounts.length === 0);
    t.is((await run('mountpoint', ['-q', dir])).code, 0, 'the other mount stands');
    await must('umount', [dir]);
  });
}

test('mount --wait and status --follow end when the image has gone from the server', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const first = await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  const proxy = await behindProxy(stage);
  proxy.holdAfter(HEADER_BYTES);
  const dir = await stage.mountPoint();
  const waiting = stage.start(['mount', 'small:1', dir, '--wait']);
  await until('it is mounted', async () => (await stage.status()).mounts.length > 0);
  const other = await stage.mountPoint('other');
  await stage.must(['mount', 'small:1', other]);
  const following = stage.start(['status', '--follow', other]);
  t.true(waiting.running);
  // The same address, and nothing of the image any more.
  await first.process.kill('SIGKILL');
  await rename(stage.data, join(stage.dir, 'data-gone'));
  const second = await stage.serve({ use: false });
  proxy.retarget(second.url);
  proxy.cut();
  proxy.flow();
  const ended = await waiting.ended;
  t.is(ended.code, 3, ended.stderr);
  t.regex(ended.stderr, /small:1|image/);
  const followed = await following.ended;
  t.is(followed.code, 0, followed.stderr);
  t.regex(followed.stdout.toString(), /retrying.*error/s);
});

test('the layout of a committed image stands beside others, and serve tells its address once', async (t) => {
  const stage = await Stage.open(t);
  const layout = await layeredImage(stage.dir);
  const server = await stage.serve();
  await stage.addImage(`oci:${layout}:1`, 'app:1');
  const dir = await stage.mount('app:1', ['--wait']);
  await must('touch', [join(dir, 'new')]);
  const out = join(stage.dir, 'out');
  for (const tag of ['a', 'b', 'a']) await stage.must(['commit', dir, '--to', `oci:${out}:${tag}`]);
  t.deepEqual(lines(await must('umoci', ['ls', '--layout', out])).sort(), ['a', 'b']);
  const said = `${server.process.stdout}${server.process.stderr}`;
  t.is(said.split(server.url).length - 1, 1);
});
