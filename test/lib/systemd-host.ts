// A machine of its own as far as services go: Debian's systemd as process 1 of new namespaces (mount, process, network,
// IPC, names, cgroup), on an overlay of this machine's root. What it writes goes to the stage's directory or to
// memory. What does not live here: what is installed on it.
import { mkdir, readdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { REPOSITORY } from './images.ts';
import { Background, must, type RunOptions, run, until } from './proc.ts';
import type { Stage } from './stage.ts';

/** Units of this machine that are none of a test's business, or not possible in namespaces. */
const MASKED = [
  'containerd.service',
  'docker-registry.service',
  'docker.service',
  'dbus.service',
  'dbus.socket',
  'dev-hugepages.mount',
  'dev-mqueue.mount',
  'kmod-static-nodes.service',
  'networking.service',
  'paths.target',
  'proc-sys-fs-binfmt_misc.automount',
  'sys-fs-fuse-connections.mount',
  'sys-kernel-config.mount',
  'sys-kernel-debug.mount',
  'sys-kernel-tracing.mount',
  'systemd-binfmt.service',
  'systemd-journal-flush.service',
  'systemd-logind.service',
  'systemd-modules-load.service',
  'systemd-networkd.service',
  'systemd-random-seed.service',
  'systemd-remount-fs.service',
  'systemd-resolved.service',
  'systemd-sysctl.service',
  'systemd-timesyncd.service',
  'systemd-tmpfiles-clean.timer',
  'systemd-tmpfiles-setup.service',
  'systemd-tmpfiles-setup-dev.service',
  'systemd-udev-trigger.service',
  'systemd-udevd.service',
  'systemd-update-utmp.service',
  'timers.target',
];

/** Makes the root directory and becomes systemd. Arguments: the stage's directory, the checkout (it may lie in /tmp), the units. */
const BOOT = `
set -eu
: "\${1:?}"
stage=$1 checkout=$2 work=$1/host root=$1/host/root; shift 2
mount -t tmpfs tmpfs "$work"
mkdir "$root" "$work/upper" "$work/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
mkdir -p "$root/opt" && mount --bind "$stage/host-opt" "$root/opt"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys" && mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
if [ -d /sys/fs/cgroup/systemd ]; then
  mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
  mkdir "$root/sys/fs/cgroup/systemd"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
  if [ -d /sys/fs/cgroup/unified ]; then
    mkdir "$root/sys/fs/cgroup/unified"
    mount -t cgroup2 cgroup "$root/sys/fs/cgroup/unified"
  fi
else
  mount -t cgroup2 cgroup "$root/sys/fs/cgroup"
fi
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
for shared in "$checkout" "$stage"; do mkdir -p "$root$shared" && mount --bind "$shared" "$root$shared"; done
mount -t tmpfs tmpfs "$root/dev"
for name in null zero full random urandom tty fuse; do
  touch "$root/dev/$name" && mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd" && mkdir "$root/dev/shm" "$root/dev/pts"
for unit; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
printf '[Unit]\\nDefaultDependencies=no\\n' >"$root/etc/systemd/system/test.target"
: >"$root/etc/fstab"
ip link set lo up
cd "$root" && mkdir .old && pivot_root . .old && cd /
# Others' mounts must not be held here.
umount -l /.old && rmdir /.old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
  /lib/systemd/systemd --system --unit=test.target --log-target=journal
`;

/**
 * The trees in which systemd keeps the groups of its units. Where version 1 has a tree for it, it also uses that of
 * version 2, and goes by the latter.
 */
async function groupTrees(): Promise<string[]> {
  const names = await readdir('/sys/fs/cgroup');
  if (!names.includes('systemd')) return ['/sys/fs/cgroup'];
  return ['systemd', 'unified']
    .filter((name) => names.includes(name))
    .map((name) => `/sys/fs/cgroup/${name}`);
}

async function removeGroups(path: string): Promise<void> {
  // Gone where an earlier try has removed it.
  for (const entry of await readdir(path, { withFileTypes: true }).catch(() => [])) {
    if (entry.isDirectory()) await removeGroups(join(path, entry.name));
  }
  await rmdir(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
}

export class SystemdHost {
  /** systemd's process as this machine sees it. */
  readonly pid: number;
  readonly #trees: string[];

  private constructor(pid: number, trees: string[]) {
    this.pid = pid;
    this.#trees = trees;
  }

  /** Where systemd keeps the groups of its units, as the host sees it. */
  get groups(): string {
    return this.#trees.at(-1)!;
  }

  /** Boots one, which ends with the stage. It has the stage's directory at the same path, and its /opt in it. */
  static async boot(stage: Stage): Promise<SystemdHost> {
    await mkdir(join(stage.dir, 'host'));
    await mkdir(join(stage.dir, 'host-opt'));
    const trees = await groupTrees();
    // The root of its namespace: it must see, and make, no groups beside its own.
    const groups = trees.map((tree) => join(tree, `firstlight-test-${process.pid}-${Date.now()}`));
    for (const group of groups) await mkdir(group);
    const namespaces = ['--mount', '--pid', '--fork', '--uts', '--ipc', '--net', '--cgroup'];
    const unshare = ['unshare', ...namespaces, '--propagation', 'private', '--kill-child=SIGKILL'];
    const enter = groups.map((group) => `echo $$ >${group}/cgroup.procs`).join('\n');
    const boot = new Background('sh', [
      ...['-ec', `${enter}\nexec "$@"`, 'sh'],
      ...unshare,
      ...['sh', '-c', BOOT, 'boot', stage.dir, REPOSITORY, ...MASKED],
    ]);
    stage.onClose(async () => {
      // With process 1 everything in its namespaces ends.
      await boot.kill('SIGKILL');
      await until('the processes of the host have ended', () =>
        Promise.all(groups.map(removeGroups)).then(
          () => true,
          () => false,
        ),
      );
    });
    const pid = await until('systemd is started', async () => {
      if (!boot.running) throw new Error(`it ended: ${boot.stderr}`);
      const { stdout } = await run('pgrep', ['-P', String(boot.pid), '-x', 'systemd']);
      return Number(stdout.toString('utf8').trim()) || undefined;
    });
    const host = new SystemdHost(pid, trees);
    await until('systemd answers', async () => {
      if (!boot.running) throw new Error(`it ended: ${boot.stderr}`);
      return (await host.run('systemctl is-active test.target')).code === 0;
    });
    return host;
  }

  /** A path of the host as this machine reaches it. */
  path(path: string): string {
    return join(`/proc/${this.pid}/root`, path);
  }

  #words(script: string): string[] {
    const namespaces = ['--mount', '--pid', '--uts', '--ipc', '--net', '--cgroup'];
    return ['--target', String(this.pid), ...namespaces, '--', 'bash', '-euc', script];
  }

  /** Runs a script on the host, whatever comes of it. */
  run(script: string, options: RunOptions = {}) {
    return run('nsenter', this.#words(script), options);
  }

  /** Runs a script on the host, which must succeed; what it printed. */
  must(script: string, options: RunOptions = {}): Promise<string> {
    return must('nsenter', this.#words(script), options);
  }

  /** Starts a script on the host as a pod has it: in a group beside those of services, with mounts of its own. */
  pod(name: string, script: string, env: Record<string, string>): Background {
    const enter = this.#trees.map(
      (tree) => `mkdir -p ${tree}/kubepods/${name}; echo $$ >${tree}/kubepods/${name}/cgroup.procs`,
    );
    const settings = Object.entries(env).map(([key, value]) => `${key}='${value}'`);
    const start = `${enter.join('\n')}
      export ${settings.join(' ')}; exec unshare --mount --propagation slave bash -euc "$0"`;
    return new Background('nsenter', [...this.#words(start), script]);
  }

  /** Kills all that is left of a pod. */
  async killPod(name: string): Promise<void> {
    await this.must(
      `for pid in $(cat ${this.groups}/kubepods/${name}/cgroup.procs); do kill -9 $pid; done`,
    );
  }
}
