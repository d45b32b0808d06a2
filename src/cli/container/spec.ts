// The OCI runtime configuration (runtime-spec 1.0) of a container: the image's config on top of what
// a container gets by default. Pure: no file is read or written here.
import { FirstlightError } from '../../errors/errors.ts';
import type { ContainerUser } from './user.ts';

/** The fields of an OCI image config that matter for running it (image-spec, config.md). */
export interface ImageConfig {
  Entrypoint?: string[] | null;
  Cmd?: string[] | null;
  Env?: string[] | null;
  User?: string;
  WorkingDir?: string;
}

/** What decides over a container beside its image. */
export interface SpecOptions {
  config: ImageConfig;
  /** Command instead of the image's `Cmd`; empty: none given. */
  command: string[];
  user: ContainerUser;
  /** Absolute path of the mounted root. */
  rootPath: string;
  readonlyRoot: boolean;
  hostname: string;
  terminal: boolean;
  net: 'host' | 'none';
  cgroupsPath: string;
  /** Hard limit of open files of this process, as `/proc/self/limits` shows it; a container gets no more. */
  openFilesMax: number;
  /** Files of this machine put over files of the image: absolute source, absolute destination. */
  binds: { source: string; destination: string }[];
}

/** The set that docker gives by default. */
const CAPABILITIES = [
  'CAP_AUDIT_WRITE',
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FOWNER',
  'CAP_FSETID',
  'CAP_KILL',
  'CAP_MKNOD',
  'CAP_NET_BIND_SERVICE',
  'CAP_NET_RAW',
  'CAP_SETFCAP',
  'CAP_SETGID',
  'CAP_SETPCAP',
  'CAP_SETUID',
  'CAP_SYS_CHROOT',
];

const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Kernel interfaces that tell about, or act on, the machine and not the container. */
const MASKED_PATHS = [
  '/proc/acpi',
  '/proc/asound',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/sys/firmware',
  '/sys/devices/virtual/powercap',
];
const READONLY_PATHS = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'];

const MOUNTS = [
  { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
  {
    destination: '/dev',
    type: 'tmpfs',
    source: 'tmpfs',
    options: ['nosuid', 'strictatime', 'mode=755', 'size=65536k'],
  },
  {
    destination: '/dev/pts',
    type: 'devpts',
    source: 'devpts',
    options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
  },
  {
    destination: '/dev/shm',
    type: 'tmpfs',
    source: 'shm',
    options: ['nosuid', 'noexec', 'nodev', 'mode=1777', 'size=65536k'],
  },
  {
    destination: '/dev/mqueue',
    type: 'mqueue',
    source: 'mqueue',
    options: ['nosuid', 'noexec', 'nodev'],
  },
  {
    destination: '/sys',
    type: 'sysfs',
    source: 'sysfs',
    options: ['nosuid', 'noexec', 'nodev', 'ro'],
  },
  {
    destination: '/sys/fs/cgroup',
    type: 'cgroup',
    source: 'cgroup',
    options: ['nosuid', 'noexec', 'nodev', 'relatime', 'ro'],
  },
];

/** sysfs shows the network namespace of who mounts it, so with the host's it must be the host's own. */
const SYS_OF_HOST = {
  destination: '/sys',
  type: 'none',
  source: '/sys',
  options: ['rbind', 'nosuid', 'noexec', 'nodev', 'ro'],
};

/**
 * The command line: entrypoint, then the given command or else the image's.
 * @throws FirstlightError `usage` where both are empty
 */
export function argsOf(config: ImageConfig, command: string[]): string[] {
  const entrypoint = config.Entrypoint ?? [];
  const args = [...entrypoint, ...(command.length > 0 ? command : (config.Cmd ?? []))];
  if (args.length === 0) {
    throw new FirstlightError('usage', 'the image names no command to run', {
      hint: 'give one: firstlight run NAME:TAG -- CMD',
    });
  }
  return args;
}

/** Environment of the process: the image's, with PATH, HOME, HOSTNAME and TERM where it has none. */
export function envOf(
  config: ImageConfig,
  options: Pick<SpecOptions, 'user' | 'hostname' | 'terminal'>,
): string[] {
  const env = new Map<string, string>([
    ['PATH', DEFAULT_PATH],
    ['HOSTNAME', options.hostname],
    ['HOME', options.user.home],
  ]);
  if (options.terminal) env.set('TERM', 'xterm');
  for (const line of config.Env ?? []) {
    const equals = line.indexOf('=');
    if (equals > 0) env.set(line.slice(0, equals), line.slice(equals + 1));
  }
  return [...env].map(([name, value]) => `${name}=${value}`);
}

/** As systemd's services have it, as far as this process may give it: raising its own limit needs a capability. */
function openFiles(max: number): object {
  const hard = Math.min(max, 524288);
  return { type: 'RLIMIT_NOFILE', hard, soft: Math.min(hard, 1024) };
}

/** The hard limit of open files in the text of /proc/self/limits. */
export function openFilesLimit(limits: string): number {
  const hard = /^Max open files +\S+ +(\d+)/m.exec(limits)?.[1];
  return hard === undefined ? 1024 : Number(hard);
}

/** The whole config.json. */
export function makeSpec(options: SpecOptions): object {
  const { config, user } = options;
  const mounts =
    options.net === 'host'
      ? MOUNTS.map((m) => (m.destination === '/sys' ? SYS_OF_HOST : m))
      : MOUNTS;
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: options.terminal,
      user: { uid: user.uid, gid: user.gid, additionalGids: user.additionalGids },
      args: argsOf(config, options.command),
      env: envOf(config, options),
      cwd: config.WorkingDir || '/',
      capabilities: {
        bounding: CAPABILITIES,
        // What a process of another user may not have is not given to it by exec(2) either.
        ...(user.uid === 0 ? { effective: CAPABILITIES, permitted: CAPABILITIES } : {}),
      },
      rlimits: [openFiles(options.openFilesMax)],
      noNewPrivileges: false,
    },
    root: { path: options.rootPath, readonly: options.readonlyRoot },
    hostname: options.hostname,
    mounts: [
      ...mounts,
      ...options.binds.map(({ source, destination }) => ({
        destination,
        type: 'bind',
        source,
        options: ['rbind', 'rprivate', 'rw'],
      })),
    ],
    linux: {
      cgroupsPath: options.cgroupsPath,
      // The runtime adds /dev/null and the other devices that every container has.
      resources: { devices: [{ allow: false, access: 'rwm' }] },
      namespaces: [
        { type: 'pid' },
        { type: 'ipc' },
        { type: 'uts' },
        { type: 'mount' },
        ...(options.net === 'none' ? [{ type: 'network' }] : []),
      ],
      maskedPaths: MASKED_PATHS,
      readonlyPaths: READONLY_PATHS,
    },
  };
}
