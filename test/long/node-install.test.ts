// deploy/install-node.sh under a real systemd, run as the DaemonSet's pods run it: a container of a lazy image reads
// through all of it, whatever is killed, replaced or taken back. The script alone: test/unit/install-node.test.ts.
import { copyFile, cp, mkdir, readdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { chainIdsOf } from '../../src/image/chain.ts';
import { Client } from '../../src/snapshots/testkit.ts';
import { REPOSITORY } from '../lib/images.ts';
import { type Background, must, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { SystemdHost } from '../lib/systemd-host.ts';

const SOCKET = '/run/firstlight/snapshots.sock';

/** A tree to install: this checkout, its packages by links, with a Node.js of its own. */
async function tree(stage: Stage, name: string): Promise<string> {
  const root = join(stage.dir, name);
  await mkdir(join(root, 'node_modules/.bin'), { recursive: true });
  for (const part of ['bin', 'src', 'proto', 'deploy', 'package.json']) {
    await cp(join(REPOSITORY, part), join(root, part), { recursive: true });
  }
  await mkdir(join(root, 'native/build'), { recursive: true });
  const addon = 'native/build/firstlight.node';
  await copyFile(join(REPOSITORY, addon), join(root, addon));
  for (const each of await readdir(join(REPOSITORY, 'node_modules'))) {
    if (each.startsWith('.')) continue;
    await symlink(join(REPOSITORY, 'node_modules', each), join(root, 'node_modules', each));
  }
  await copyFile(
    join(REPOSITORY, 'node_modules/node/bin/node'),
    join(root, 'node_modules/.bin/node'),
  );
  await writeFile(join(root, 'name'), name);
  return root;
}

interface Image {
  digest: string;
  manifest: { layers: { digest: string }[] };
  config: { rootfs: { diff_ids: string[] } };
}

/** Calls the snapshotter as the kubelet's pull and the start of a container do; arguments of mount(8). */
async function startContainer(host: SystemdHost, image: Image, key: string): Promise<string> {
  const client = new Client(host.path(SOCKET));
  try {
    const chains = chainIdsOf(image.config.rootfs.diff_ids);
    for (const [index, chain] of chains.entries()) {
      const layers = image.manifest.layers.map(({ digest }) => digest);
      const labels = {
        'containerd.io/snapshot.ref': chain,
        'containerd.io/snapshot/cri.image-ref': 'registry.example.com/app:1',
        'containerd.io/snapshot/cri.manifest-digest': image.digest,
        'containerd.io/snapshot/cri.layer-digest': layers[index],
        'containerd.io/snapshot/cri.image-layers': layers.slice(index).join(','),
      };
      const lazy = await client
        .prepare(`extract-${index} ${chain}`, chains[index - 1] ?? '', labels)
        .then(
          () => false,
          (error: { code: number; details: string }) => /comes lazily/.test(error.details),
        );
      if (!lazy) throw new Error('the layer does not come lazily');
    }
    const [mount] = await client.prepare(key, chains.at(-1));
    return `-t ${mount!.type} -o ${mount!.options.join(',')} ${mount!.source}`;
  } finally {
    client.close();
  }
}

/** The host with a delta server that has one image, and what a test asks of it. */
class Node {
  readonly stage: Stage;
  readonly host: SystemdHost;
  readonly image: Image;

  private constructor(stage: Stage, host: SystemdHost, image: Image) {
    this.stage = stage;
    this.host = host;
    this.image = image;
  }

  static async boot(stage: Stage): Promise<Node> {
    const host = await SystemdHost.boot(stage);
    const root = join(stage.dir, 'rootfs');
    await mkdir(root);
    await writeFile(join(root, 'hello'), 'hello\n');
    await must('tar', ['-C', root, '-cf', `${root}.tar`, '.']);
    const data = ['--data', stage.data];
    await stage.must(['image', 'add', `rootfs:${root}.tar`, '--name', 'app:1', ...data]);
    const image = await stage.json<Image>(['image', 'inspect', 'app:1', ...data]);
    const server = `${REPOSITORY}/bin/firstlight serve --data ${stage.data}`;
    await host.must(`systemd-run --quiet --unit=delta ${server} --listen 127.0.0.1:7070`);
    await writeFile(
      join(stage.dir, 'config.toml'),
      `server = "http://127.0.0.1:7070"
root = "${join(stage.dir, 'store')}"
snapshotter = "${SOCKET}"
prepare-timeout = "280s"
`,
    );
    return new Node(stage, host, image);
  }

  /** A pod of the DaemonSet. */
  pod(name: string, source: string): Background {
    return this.host.pod(
      name,
      `mkdir -p /run/host; mount --rbind / /run/host
       ${source}/deploy/install-node.sh install ${join(this.stage.dir, 'config.toml')}
       exec nsenter --target 1 --mount -- journalctl --unit firstlight.service --follow`,
      { HOST_ROOT: '/run/host', SOURCE: source, HOST_RUN: 'nsenter --target 1 --mount --pid --' },
    );
  }

  /** A pod that has done its work. */
  async installed(name: string, source: string): Promise<Background> {
    const pod = this.pod(name, source);
    await until(
      `${name} has installed`,
      () => {
        if (!pod.running) throw new Error(`the pod ended: ${pod.stdout}${pod.stderr}`);
        return pod.stdout.includes('is installed and runs');
      },
      { timeoutMs: 240_000 },
    );
    return pod;
  }

  /** One line of a script's output. */
  async line(script: string): Promise<string> {
    return (await this.host.must(script)).trim();
  }

  current(): Promise<string> {
    return this.line('readlink /opt/firstlight/current');
  }

  /** What runs in the service's group: process, program and arguments. */
  async programs(): Promise<string[]> {
    const group = `${this.host.groups}/system.slice/firstlight.service/cgroup.procs`;
    const text = await this.host.must(`for pid in $(cat ${group}); do
      echo "$pid $(readlink /proc/$pid/exe) $(tr '\\0' ' ' </proc/$pid/cmdline)"; done`);
    return text
      .split('\n')
      .map((each) => each.trim())
      .filter(Boolean);
  }

  async keeper(): Promise<string> {
    const found = (await this.programs()).filter((each) => each.includes('keeper-main'));
    if (found.length !== 1) throw new Error(`not one keeper: ${found.join('; ')}`);
    return found[0]!;
  }

  /** Starts a container's stand-in, which opens a file of the image all the time. */
  async startReader(): Promise<void> {
    const mount = await startContainer(this.host, this.image, 'container');
    const loop = 'while cat /run/merged/hello >/dev/null; do echo read; sleep 0.05; done';
    await this.host.must(`mkdir -p /run/merged; mount ${mount} /run/merged
      systemd-run --quiet --unit=reader sh -c '${loop}'`);
  }

  /** Waits until the reader has gone on, which it does not after a failure. */
  async readsOn(after: string): Promise<void> {
    const reads = async () =>
      Number(await this.line("journalctl --unit reader -o cat --no-pager | grep -c '^read$'"));
    const before = await reads();
    await until(`the container reads on after ${after}`, async () => (await reads()) > before + 3);
    await this.host.must('systemctl is-active reader');
  }

  async endReader(): Promise<void> {
    await this.host.must('systemctl stop reader; umount /run/merged');
    const client = new Client(this.host.path(SOCKET));
    await client.remove('container');
    client.close();
  }
}

test('a container reads on: installed, its pod killed, upgraded, taken back, removed', async (t) => {
  const stage = await Stage.open(t);
  const node = await Node.boot(stage);
  const { host } = node;
  t.teardown(async () => {
    if (t.passed) return;
    const { stdout } = await host.run('journalctl --no-pager -n 100 --unit firstlight');
    t.log(stdout.toString('utf8'));
  });
  const [one, two] = [await tree(stage, 'one'), await tree(stage, 'two')];

  const first = await node.installed('pod1', one);
  const old = await node.current();
  await node.startReader();
  const keeper = await node.keeper();
  t.true(keeper.includes(`/opt/firstlight/${old}/`), keeper);

  await host.killPod('pod1');
  await first.ended;
  t.is((await node.programs()).length, 2, 'daemon and keeper are not of the pod');
  await node.readsOn('the end of its pod');

  const second = await node.installed('pod2', two);
  const current = await node.current();
  t.not(current, old);
  t.is(await node.keeper(), keeper);
  const daemons = (await node.programs()).filter((each) => each.includes(' daemon '));
  t.is(daemons.length, 1);
  t.true(daemons[0]?.includes(`/opt/firstlight/${current}/`), daemons[0]);
  t.deepEqual((await node.line('ls -d /opt/firstlight/versions/*')).split('\n').length, 2);
  await node.readsOn('an upgrade');

  await writeFile(join(one, 'bin/firstlight'), '#!/bin/sh\nexit 1\n', { mode: 0o755 });
  const third = await node.pod('pod3', one).ended;
  t.is(third.code, 1);
  t.regex(third.stderr, /does not start .* again/);
  t.is(await node.current(), current);
  t.is(await node.line('systemctl is-active firstlight'), 'active');
  t.is(await node.keeper(), keeper);
  await node.readsOn('a version that does not start');

  const uninstall = `HOST_ROOT=/ ${two}/deploy/install-node.sh uninstall`;
  const refused = await host.run(uninstall);
  t.is(refused.code, 1);
  t.regex(refused.stderr, /containers stand on 1 mounted images/);
  await node.readsOn('a removal that was refused');

  await host.killPod('pod2');
  await second.ended;
  await node.endReader();
  await host.must(uninstall);
  t.is(await node.line('grep -c fuse.firstlight /proc/1/mountinfo || true'), '0');
  t.deepEqual(await readdir(host.path('/opt')), []);
});
