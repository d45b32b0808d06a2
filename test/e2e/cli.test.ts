// The command line against real servers, daemons, mounts and containers: what each command does, and
// how each failure ends.
import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { MountStatus, StoredImage } from '../../src/daemon/control.ts';
import { runtimeDir } from '../../src/daemon/paths.ts';
import { behindProxy, MissedError, mountHeld, untilMet } from '../lib/arriving.ts';
import { busyboxImage, busyboxLayout } from '../lib/busybox-image.ts';
import { mountsBelow } from '../lib/leaks.ts';
import { freePort } from '../lib/ports.ts';
import { Background, type Ended, must, run, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

/** More than the header of the tiny image, and less than its one file of a megabyte. */
const TINY_BYTES = 300_000;

/** A stage with a server that has the tiny image as `tiny:1`. */
async function tiny(t: ExecutionContext, rate?: string): Promise<Stage> {
  const stage = await Stage.open(t);
  await stage.serve(rate === undefined ? {} : { rate });
  await stage.addImage(`rootfs:${await busyboxImage(stage.dir)}`, 'tiny:1');
  return stage;
}

/** The failure contract: exit code, one line with what to do, nothing on stdout. */
function failed(t: ExecutionContext, ended: Ended, code: number, line: RegExp): void {
  t.is(ended.code, code, ended.stderr);
  const lines = ended.stderr.trimEnd().split('\n');
  t.is(lines.length, 1, ended.stderr);
  t.regex(lines[0]!, /^firstlight: /);
  t.regex(lines[0]!, line);
  t.is(ended.stdout.toString(), '');
}

test.serial('version, help and a bare call', async (t) => {
  const stage = await Stage.open(t);
  t.regex(await stage.must(['--version']), /^\d+\.\d+\.\d+\n$/);
  t.regex(await stage.must(['mount', '--help']), /Usage: firstlight mount/);
  const bare = await stage.run([]);
  t.is(bare.code, 2);
  t.is(bare.stdout.toString(), '');
});

test.serial('mount, look, write, umount', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1');
  t.is(
    await must('cat', [join(dir, 'etc/passwd')]),
    'root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n',
  );
  await must('sh', ['-c', 'echo new > "$0/etc/new" && rm "$0/etc/group"', dir]);
  t.is(await must('cat', [join(dir, 'etc/new')]), 'new\n');
  const listed = await stage.json<{ mounts: MountStatus[]; images: StoredImage[] }>(['ls']);
  t.like(listed.mounts[0], { directory: dir, image: 'tiny:1', rw: 'overlay', state: 'mounted' });
  t.deepEqual(listed.images[0]?.names, ['tiny:1']);
  t.regex(await stage.must(['ls']), /tiny:1/);
  await stage.must(['umount', dir]);
  t.deepEqual(await mountsBelow(stage.dir), []);
  t.deepEqual(await readdir(dir), []);
  const again = await stage.mount('tiny:1');
  t.is((await run('test', ['-e', join(again, 'etc/new')])).code, 1, 'a new mount begins anew');
  t.is((await run('test', ['-e', join(again, 'etc/group')])).code, 0);
});

test.serial('a read-only mount refuses writes', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1', ['--rw', 'off']);
  const touch = await run('touch', [join(dir, 'x')]);
  t.regex(touch.stderr, /Read-only file system/);
  await stage.must(['umount', dir]);
  t.deepEqual(await mountsBelow(stage.dir), []);
});

test.serial('status has every time and count, and ends complete', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint();
  const before = Date.now();
  const mount = await stage.json<MountStatus>(['mount', 'tiny:1', dir, '--wait']);
  t.is(mount.transfer.state, 'complete');
  await must('cat', [join(dir, 'bin/busybox')]);
  const status = await stage.mountStatus(dir);
  t.is(status.bytesDone, status.bytes);
  t.true(status.bytes > 0 && status.headerBytes > 0);
  const { requestedAt, headerAt, mountedAt, firstReadAt, lastFrameAt } = status;
  t.true(requestedAt <= headerAt! && headerAt! <= mountedAt, JSON.stringify(status));
  t.true(mountedAt <= firstReadAt! && headerAt! <= lastFrameAt!);
  t.true(before <= requestedAt && lastFrameAt! <= Date.now());
  t.truthy(status.features?.protocol);
  t.true(status.stats!.opens >= 1);
  t.regex(await stage.must(['status', dir]), /transfer {2}complete, 100%/);
});

test.serial(
  'mount returns before the image is there; --wait and --follow return when it is',
  async (t) => {
    const stage = await tiny(t);
    const proxy = await behindProxy(stage);
    const dir = await mountHeld(stage, proxy, 'tiny:1', [], { bytes: TINY_BYTES });
    t.not((await stage.mountStatus(dir)).transfer.state, 'complete');
    const elsewhere = await stage.mountPoint('elsewhere');
    const waiting = stage.start(['mount', 'tiny:1', elsewhere, '--wait']);
    const following = stage.start(['status', '--follow', '--quiet', dir]);
    await until('the second is mounted', async () => (await stage.status()).mounts.length === 2);
    t.true(waiting.running && following.running, 'there is something to wait for');
    proxy.flow();
    for (const each of [waiting, following]) t.is((await each.ended).code, 0, each.stderr);
    t.is((await stage.mountStatus(dir)).transfer.state, 'complete');
  },
);

test.serial('Ctrl-C while waiting takes the mount away', async (t) => {
  const stage = await tiny(t);
  const proxy = await behindProxy(stage);
  proxy.holdAfter(TINY_BYTES);
  const dir = await stage.mountPoint();
  const waiting = stage.start(['mount', 'tiny:1', dir, '--wait']);
  await until('mounted', async () => (await mountsBelow(dir)).length > 0);
  t.true(waiting.running);
  const ended = await waiting.kill('SIGINT');
  t.is(ended.code, 130);
  await until('unmounted', async () => (await mountsBelow(stage.dir)).length === 0);
});

test.serial('the mount outlives the shell that made it', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint();
  const program = `"${process.execPath}" "${join(import.meta.dirname, '../../bin/firstlight.js')}" mount tiny:1 "${dir}"`;
  // The shell and its whole process group are gone when the file is read.
  await must('setsid', ['--wait', 'sh', '-c', `${program} && kill -HUP 0; true`], {
    env: stage.env,
  }).catch(() => '');
  t.is(await must('cat', [join(dir, 'etc/not-executable')]), 'text\n');
});

test.serial('usage errors end with 2', async (t) => {
  const stage = await Stage.open(t);
  const dir = await stage.mountPoint();
  failed(t, await stage.run(['mount', 'BAD::x', dir]), 2, /'BAD::x' is not an image reference/);
  failed(t, await stage.run(['mount', 'tiny:1']), 2, /DIR/);
  failed(t, await stage.run(['mount', 'a:1', dir, '--rw', 'maybe']), 2, /overlay, fuse, off/);
  failed(t, await stage.run(['mount', 'a:1', dir, '--platform', 'a/b/c/d']), 2, /not a platform/);
  await writeFile(join(stage.dir, 'file'), '');
  failed(t, await stage.run(['mount', 'a:1', join(stage.dir, 'file')]), 2, /not a directory/);
  failed(t, await stage.run(['image', 'add', 'what:ever']), 2, /docker-archive/);
  failed(t, await stage.run(['mout', 'a:1', dir]), 2, /mount/);
  const config = join(stage.dir, 'config.toml');
  await writeFile(config, 'nonsense = 1\n');
  failed(t, await stage.run(['ls', '--config', config]), 2, /config\.toml: unknown key "nonsense"/);
});

test.serial('no such image, directory or mount: 3', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint();
  failed(t, await stage.run(['mount', 'nosuch:1', dir]), 3, /no image nosuch:1/);
  failed(t, await stage.run(['mount', 'tiny:1', join(stage.dir, 'none')]), 3, /mkdir -p/);
  failed(t, await stage.run(['umount', dir]), 3, /not mounted/);
  failed(t, await stage.run(['status', dir]), 3, /not mounted/);
  failed(t, await stage.run(['image', 'rm', 'nosuch:1']), 3, /nosuch:1/);
  failed(t, await stage.run(['image', 'add', 'rootfs:none.tar', '--name', 'a:1']), 3, /none\.tar/);
  t.deepEqual(await mountsBelow(stage.dir), []);
});

test.serial('no server: 4', async (t) => {
  const stage = await Stage.open(t);
  const dir = await stage.mountPoint();
  const nobody = ['--server', 'http://127.0.0.1:1'];
  failed(t, await stage.run(['mount', 'tiny:1', dir, ...nobody]), 4, /127\.0\.0\.1:1/);
  failed(t, await stage.run(['image', 'ls', ...nobody]), 4, /firstlight serve/);
});

/**
 * Runs the command line as the user nobody, who may not look into every checkout: it is bound to a
 * place that is open to all, in a mount namespace that ends with the command.
 */
async function asNobody(stage: Stage, args: string[]): Promise<Ended> {
  const checkout = join(stage.dir, 'checkout');
  await chmod(stage.dir, 0o755);
  await mkdir(checkout, { recursive: true });
  const script =
    'mount --bind "$0" "$1" && cd "$1" && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups node_modules/.bin/node bin/firstlight.js "$@"';
  const repository = join(import.meta.dirname, '../..');
  return run('unshare', ['-m', 'sh', '-c', script, repository, checkout, ...args], {
    env: stage.env,
  });
}

test.serial('no permission for /dev/fuse: 5', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint();
  const root = join(stage.dir, 'of-nobody');
  await mkdir(root);
  await must('chown', ['nobody', root]);
  const ended = await asNobody(stage, ['mount', 'tiny:1', dir, '--root', root]);
  failed(t, ended, 5, /\/dev\/fuse.*root/);
});

test.serial('a busy mount point: 6, naming who uses it', async (t) => {
  const stage = await tiny(t);
  failed(t, await stage.run(['mount', 'tiny:1', '/proc']), 6, /\/proc is a mount point already/);
  const dir = await stage.mount('tiny:1');
  failed(t, await stage.run(['mount', 'tiny:1', dir]), 6, /mount point already/);
  failed(t, await stage.run(['mount', 'tiny:1', join(dir, 'etc')]), 6, /inside/);
  const user = new Background('sh', ['-c', 'cd "$0" && echo in && read x', dir], {
    keepInput: true,
  });
  await until('the user is inside', () => user.stdout.includes('in'));
  const busy = await stage.run(['umount', dir]);
  failed(t, busy, 6, new RegExp(`in use by sh \\(${user.pid}\\).*--lazy`));
  t.is((await stage.mountStatus(dir)).state, 'mounted');
  t.is(await must('cat', [join(dir, 'etc/not-executable')]), 'text\n', 'it works on');
  await stage.must(['umount', '--lazy', dir]);
  t.deepEqual(await readdir(dir), []);
  await user.kill();
});

test.serial('an image for another platform: 8', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint();
  const ended = await stage.run(['mount', 'tiny:1', dir, '--platform', 'linux/s390x']);
  failed(t, ended, 8, /linux\/s390x.*linux\//);
});

test.serial('a broken archive: 9', async (t) => {
  const stage = await tiny(t);
  await writeFile(join(stage.dir, 'broken.tar'), Buffer.alloc(4096, 'x'));
  const ended = await stage.run(['image', 'add', 'rootfs:broken.tar', '--name', 'a:1']);
  failed(t, ended, 9, /./);
  t.is((await stage.json<unknown[]>(['image', 'ls'])).length, 1);
});

test.serial('what cannot be done here: 12', async (t) => {
  const stage = await Stage.open(t);
  const dir = await stage.mountPoint();
  const portable = ['--rw', 'fuse', '--session', 'fuse-native'];
  failed(
    t,
    await stage.run(['mount', 'a:1', dir, ...portable]),
    12,
    /kernel session.*--rw overlay/,
  );
  failed(t, await stage.run(['run', 'a:1', '--runtime', 'nosuch']), 12, /no OCI runtime.*nosuch/);
});

test.serial('with --json an error is an object on stdout', async (t) => {
  const stage = await Stage.open(t);
  const ended = await stage.run(['mount', 'BAD::x', '/mnt', '--json']);
  t.is(ended.code, 2);
  const { error } = JSON.parse(ended.stdout.toString()) as {
    error: { kind: string; hint: string };
  };
  t.is(error.kind, 'usage');
  t.regex(error.hint, /HOST\/NAME:TAG/);
});

test.serial('a full disk of the worker: 7, and nothing is left', async (t) => {
  const stage = await tiny(t);
  const small = join(stage.dir, 'small');
  await mkdir(small);
  await must('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', small]);
  stage.onClose(async () => {
    await stage.run(['daemon', '--stop', '--root', join(small, 'root')]);
    await must('umount', ['-l', small]);
  });
  const dir = await stage.mountPoint();
  const ended = await stage.run(['mount', 'tiny:1', dir, '--root', join(small, 'root')]);
  failed(t, ended, 7, /space/i);
  t.deepEqual(await mountsBelow(dir), []);
});

/** A worker whose root is a tmpfs that has room for the header and not for the image. */
async function smallDisk(
  stage: Stage,
): Promise<{ env: NodeJS.ProcessEnv; enlarge(): Promise<void> }> {
  const small = join(stage.dir, 'small');
  await mkdir(small);
  await must('mount', ['-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', small]);
  const env = { FIRSTLIGHT_ROOT: join(small, 'root') };
  stage.onClose(async () => {
    await stage.run(['daemon', '--stop'], { env });
    await must('umount', ['-l', small]);
  });
  const enlarge = async () => {
    await must('mount', ['-o', 'remount,size=64m', small]);
  };
  return { env, enlarge };
}

test.serial(
  'a disk that fills up while waiting: 7, and the rest comes when there is room',
  async (t) => {
    const stage = await tiny(t);
    const { env, enlarge } = await smallDisk(stage);
    const dir = await stage.mountPoint();
    failed(t, await stage.run(['mount', 'tiny:1', dir, '--wait'], { env }), 7, /space/i);
    t.deepEqual(await mountsBelow(dir), []);
    await enlarge();
    await stage.must(['mount', 'tiny:1', dir, '--wait'], { env });
    await stage.must(['umount', dir], { env });
  },
);

test.serial(
  'a disk that fills up under a mount: readers get ENOSPC until there is room',
  async (t) => {
    const stage = await tiny(t);
    const { env, enlarge } = await smallDisk(stage);
    const dir = await stage.mountPoint();
    // Without a layer of its own: making that needs room, which the first frames may have taken.
    await stage.must(['mount', 'tiny:1', dir, '--rw', 'off'], { env });
    t.regex((await run('cat', [join(dir, 'bin/busybox')])).stderr, /No space left/);
    await enlarge();
    const original = await readFile(join(stage.dir, 'busybox-root/bin/busybox'));
    await until('it is fetched once there is room', async () => {
      const again = await run('cat', [join(dir, 'bin/busybox')]);
      return again.code === 0 && again.stdout.equals(original);
    });
    await stage.must(['umount', dir], { env });
  },
);

test.serial('a full disk of the server: 7, and the image is not there', async (t) => {
  const stage = await Stage.open(t);
  const small = join(stage.dir, 'small');
  await mkdir(small);
  await must('mount', ['-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs', small]);
  stage.onClose(async () => {
    await must('umount', ['-l', small]);
  });
  const tar = await busyboxImage(stage.dir);
  const ended = await stage.run([
    'image',
    'add',
    `rootfs:${tar}`,
    '--name',
    'a:1',
    '--data',
    join(small, 'data'),
  ]);
  failed(t, ended, 7, /space/i);
  t.deepEqual(await stage.json(['image', 'ls', '--data', join(small, 'data')]), []);
});

test.serial('a reader that goes away ends the output without a word', async (t) => {
  const stage = await tiny(t);
  const line = `"${process.execPath}" "${join(import.meta.dirname, '../../bin/firstlight.js')}" image inspect tiny:1`;
  const ended = await run('bash', ['-c', `set -o pipefail; ${line} | true`], { env: stage.env });
  t.is(ended.stderr, '');
});

test.serial('two commands at once start one daemon', async (t) => {
  const stage = await tiny(t);
  const dirs = await Promise.all(['a', 'b', 'c'].map((name) => stage.mountPoint(name)));
  const ends = await Promise.all(dirs.map((dir) => stage.run(['mount', 'tiny:1', dir])));
  t.deepEqual(
    ends.map((ended) => [ended.code, ended.stderr]),
    dirs.map(() => [0, '']),
  );
  const { mounts } = await stage.status();
  t.deepEqual(mounts.map((mount) => mount.directory).sort(), dirs);
});

test.serial('the daemon ends when idle, and its socket with it', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint();
  await stage.must(['mount', 'tiny:1', dir, '--wait', '--idle', '1s']);
  const pid = await stage.daemonPid();
  await new Promise((resolve) => setTimeout(resolve, 1500));
  t.is(await stage.daemonPid(), pid, 'not while something is mounted');
  await stage.must(['umount', dir]);
  await stage.daemonEnded();
  await t.throwsAsync(stat(join(stage.root, 'control.sock')), { code: 'ENOENT' });
});

test.serial('SIGTERM of the daemon unmounts cleanly', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1');
  const pid = await stage.daemonPid();
  process.kill(pid, 'SIGTERM');
  await until('unmounted', async () => (await mountsBelow(stage.dir)).length === 0);
  await stage.daemonEnded();
  t.deepEqual(await readdir(dir), []);
});

for (const rw of ['overlay', 'off']) {
  test.serial(`a dead mount is replaced (--rw ${rw})`, async (t) => {
    const stage = await tiny(t);
    const dir = await stage.mount('tiny:1', ['--rw', rw]);
    process.kill(await stage.daemonPid(), 'SIGKILL');
    await until('the mount is dead', async () => (await run('ls', [join(dir, 'etc')])).code !== 0);
    await stage.must(['mount', 'tiny:1', dir, '--rw', rw]);
    t.is(await must('cat', [join(dir, 'etc/not-executable')]), 'text\n');
    await stage.must(['umount', dir]);
    t.deepEqual(await mountsBelow(stage.dir), []);
  });
}

test.serial('a dead mount can be unmounted', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1', ['--rw', 'off']);
  process.kill(await stage.daemonPid(), 'SIGKILL');
  await until('the mount is dead', async () => (await run('ls', [dir])).code !== 0);
  await stage.must(['umount', dir]);
  t.deepEqual(await mountsBelow(stage.dir), []);
});

test.serial('an unmount from outside is noticed', async (t) => {
  const stage = await tiny(t);
  const over = await stage.mount('tiny:1', [], 'over');
  const plain = await stage.mount('tiny:1', ['--rw', 'off'], 'plain');
  await must('umount', [over]);
  await must('umount', [plain]);
  await until('nothing is mounted', async () => (await stage.status()).mounts.length === 0);
  t.deepEqual(await mountsBelow(stage.dir), []);
});

test.serial('a root with a long path has its socket elsewhere', async (t) => {
  const stage = await tiny(t);
  const root = join(stage.dir, 'deep-'.repeat(20), 'root');
  const dir = await stage.mountPoint();
  await stage.must(['mount', 'tiny:1', dir, '--root', root]);
  t.is((await stat(join(runtimeDir(root), 'control.sock'))).mode & 0o777, 0o600);
  await stage.must(['umount', dir, '--root', root]);
  await stage.must(['daemon', '--stop', '--root', root]);
  await t.throwsAsync(stat(runtimeDir(root)), { code: 'ENOENT' });
});

test.serial('mounting below a symbolic link mounts at its target', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mountPoint('target');
  await symlink(dir, join(stage.dir, 'link'));
  await stage.must(['mount', 'tiny:1', join(stage.dir, 'link')]);
  t.is((await stage.status()).mounts[0]?.directory, dir);
  await stage.must(['umount', join(stage.dir, 'link')]);
});

test.serial('gc --all and verify', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1', ['--wait']);
  t.regex(await stage.must(['verify']), /contents checked/);
  t.is((await stage.json<{ images: number }>(['gc', '--all'])).images, 0, 'not while mounted');
  await stage.must(['umount', dir]);
  const removed = await stage.json<{ images: number; bytes: number }>(['gc', '--all']);
  t.is(removed.images, 1);
  t.true(removed.bytes > 1_000_000);
  t.deepEqual((await stage.json<{ images: unknown[] }>(['ls'])).images, []);
  const again = await stage.mount('tiny:1');
  t.is(await must('cat', [join(again, 'etc/not-executable')]), 'text\n', 'it is fetched again');
});

test.serial('images of a layout are uploaded, listed, inspected and removed', async (t) => {
  const stage = await Stage.open(t);
  await stage.serve();
  const layout = await busyboxLayout(stage.dir, ['--config.cmd', 'echo', '--config.cmd', 'hi']);
  await stage.must(['image', 'add', `oci:${layout}:latest`, '--name', 'tiny:2']);
  const index = JSON.parse(await readFile(join(layout, 'index.json'), 'utf8')) as {
    manifests: { digest: string }[];
  };
  const listed = await stage.json<{ name: string; digest: string }[]>(['image', 'ls']);
  t.like(listed[0], { name: 'tiny:2', digest: index.manifests[0]!.digest });
  const detail = await stage.json<{ config: { config: { Cmd: string[] } } }>([
    'image',
    'inspect',
    'tiny:2',
  ]);
  t.deepEqual(detail.config.config.Cmd, ['echo', 'hi']);
  await stage.must(['image', 'rm', 'tiny:2']);
  t.deepEqual(await stage.json(['image', 'ls']), []);
});

test.serial(
  'an image comes from a registry with the login of the local docker config: 10 without it',
  async (t) => {
    const stage = await Stage.open(t);
    await stage.serve();
    const layout = await busyboxLayout(stage.dir, ['--config.cmd', 'true']);
    const registry = await startRegistry(stage, 'reader', 'secret');
    await must('skopeo', [
      'copy',
      '--dest-tls-verify=false',
      '--dest-creds=reader:secret',
      `oci:${layout}:latest`,
      `docker://${registry}/team/tiny:1`,
    ]);
    const source = `docker://${registry}/team/tiny:1`;
    const config = join(stage.dir, 'docker');
    await mkdir(config);
    const login = async (password: string) => {
      const auth = Buffer.from(`reader:${password}`).toString('base64');
      await writeFile(
        join(config, 'config.json'),
        JSON.stringify({ auths: { [registry]: { auth } } }),
      );
    };
    const env = { DOCKER_CONFIG: config };
    await login('wrong');
    failed(t, await stage.run(['image', 'add', source, '--name', 'tiny:3'], { env }), 10, /./);
    await login('secret');
    const image = await stage.json<{ name: string }>(['image', 'add', source, '--name', 'tiny:3'], {
      env,
    });
    t.is(image.name, 'tiny:3');
    await stage.must(['run', 'tiny:3']);
  },
);

/** Debian's docker-registry with a password, ended with the stage; its HOST:PORT. */
async function startRegistry(stage: Stage, user: string, password: string): Promise<string> {
  const htpasswd = join(stage.dir, 'htpasswd');
  await writeFile(htpasswd, await must('htpasswd', ['-Bbn', user, password]));
  const port = await freePort();
  const config = join(stage.dir, 'registry.yml');
  await writeFile(
    config,
    `version: 0.1
storage: {filesystem: {rootdirectory: ${join(stage.dir, 'registry')}}}
http: {addr: "127.0.0.1:${port}"}
auth: {htpasswd: {realm: test, path: ${htpasswd}}}
`,
  );
  const registry = new Background('docker-registry', ['serve', config], { env: stage.env });
  stage.onClose(async () => {
    await registry.kill('SIGTERM');
  });
  await until('the registry answers', async () => {
    if (!registry.running) throw new Error(registry.stderr);
    return fetch(`http://127.0.0.1:${port}/v2/`).then(
      () => true,
      () => false,
    );
  });
  return `127.0.0.1:${port}`;
}

test.serial('doctor says what there is, and fails where something needed is missing', async (t) => {
  const stage = await Stage.open(t);
  const { url } = await stage.serve();
  const report = await stage.json<{ ok: boolean; findings: { name: string; level: string }[] }>([
    'doctor',
    '--server',
    url,
  ]);
  t.true(report.ok, JSON.stringify(report.findings));
  const level = (name: string) => report.findings.find((finding) => finding.name === name)?.level;
  for (const name of [
    'node',
    'native part',
    '/dev/fuse',
    'fuse mount',
    'overlayfs',
    'store root',
    'server',
  ]) {
    t.is(level(name), 'ok', name);
  }
  t.deepEqual(await mountsBelow(stage.dir), []);
  const lacking = await stage.run(['doctor', '--server', 'http://127.0.0.1:1']);
  t.is(lacking.code, 1);
  t.regex(lacking.stdout.toString(), /FAIL {2}server: .*127\.0\.0\.1:1.*\n {6}-> check --server/);
});

test.serial(
  'one configuration file serves all commands, below environment and flags',
  async (t) => {
    const stage = await tiny(t);
    const url = stage.env.FIRSTLIGHT_SERVER!;
    const root = join(stage.dir, 'configured');
    const config = join(stage.dir, 'firstlight.toml');
    await writeFile(config, `server = "${url}"\nroot = "${root}"\nrw = "off"\nidle = "10m"\n`);
    const env = { FIRSTLIGHT_SERVER: '', FIRSTLIGHT_ROOT: '', FIRSTLIGHT_CONFIG: config };
    const dir = await stage.mountPoint();
    await stage.must(['mount', 'tiny:1', dir], { env });
    const { mounts } = await stage.json<{ mounts: MountStatus[] }>(['status'], { env });
    t.like(mounts[0], { rw: 'off', server: url });
    t.true((await stat(join(root, 'control.sock'))).isSocket());
    await stage.must(['umount', dir], { env });
    await stage.must(['mount', 'tiny:1', dir, '--rw', 'overlay'], { env });
    t.is(
      (await stage.json<{ mounts: MountStatus[] }>(['status'], { env })).mounts[0]?.rw,
      'overlay',
    );
    await stage.must(['umount', dir], { env });
  },
);

test.serial('on a terminal there is a progress bar, and the lines stay whole', async (t) => {
  const stage = await tiny(t, '8mbit');
  const dir = await stage.mountPoint();
  const program = `"${process.execPath}" "${join(import.meta.dirname, '../../bin/firstlight.js')}" mount tiny:1 "${dir}" --wait`;
  const { stdout, code } = await run('script', ['-qec', program, '/dev/null'], { env: stage.env });
  t.is(code, 0);
  t.regex(stdout.toString(), /100% .* of .*tiny:1/);
});

test.serial('what was written before the daemon was killed stays until gc', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1');
  await must('sh', ['-c', 'echo precious > "$0/etc/mine"; sync', dir]);
  const { id } = await stage.mountStatus(dir);
  process.kill(await stage.daemonPid(), 'SIGKILL');
  // Elsewhere: at the same directory it would be found again.
  const other = await stage.mount('tiny:1', [], 'other');
  const kept = join(stage.root, 'snapshots', id, 'upper/etc/mine');
  t.is(await readFile(kept, 'utf8'), 'precious\n');
  t.is((await stage.json<{ snapshots: number }>(['gc'])).snapshots, 1);
  await t.throwsAsync(stat(kept), { code: 'ENOENT' });
  t.is(
    await must('cat', [join(other, 'etc/not-executable')]),
    'text\n',
    'the new mount is not touched',
  );
});

test.serial('Ctrl-C during an upload ends with 130 and leaves nothing on the server', async (t) => {
  const stage = await Stage.open(t);
  await stage.serve();
  // Zeros are the end of a tar; what counts is that it takes its time.
  const tar = join(stage.dir, 'zeros.tar');
  await must('truncate', ['-s', '2G', tar]);
  const uploads = join(stage.data, 'uploads');
  await untilMet(t, async () => {
    const client = stage.start(['image', 'add', `rootfs:${tar}`, '--name', 'zeros:1']);
    await until('the upload has begun', async () => {
      const names = await readdir(uploads, { recursive: true }).catch(() => []);
      return names.length > 0 || !client.running;
    });
    const ended = await client.kill('SIGINT');
    if (ended.code === 0) {
      await stage.must(['image', 'rm', 'zeros:1']);
      throw new MissedError('the upload was done before the signal');
    }
    t.is(ended.code, 130, ended.stderr);
  });
  await until('the server has cleared it away', async () => (await readdir(uploads)).length === 0);
  t.deepEqual(await stage.json(['image', 'ls']), []);
});

test.serial('a daemon of another user, and a root that cannot be written: 5', async (t) => {
  const stage = await tiny(t);
  const dir = await stage.mount('tiny:1');
  failed(t, await asNobody(stage, ['status', dir]), 5, /another user|permission denied/);
  failed(t, await asNobody(stage, ['ls', '--root', join(stage.dir, 'new')]), 5, /--root/);
});
