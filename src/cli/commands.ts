// The command table: names, arguments, options, help and the module that does the work. Both readers
// of the command line (quick-parse.ts and program.ts) are driven by it, so they cannot disagree
// about what there is.
import type { Context } from './context.ts';
import type { SettingKey } from './settings.ts';

/** A positional argument. */
export interface ArgumentSpec {
  name: string;
  text: string;
  required: boolean;
  variadic?: boolean;
}

/** An option of one command that is no setting. */
export interface FlagSpec {
  name: string;
  text: string;
  /** What stands for the value in `--help`; undefined for a switch. */
  placeholder?: string;
  /** May be given several times, and take several values. */
  multiple?: boolean;
  short?: string;
}

/** Values of a command's options by name: `true`, text, or texts where `multiple`. */
export type OptionValues = Record<string, unknown>;

/** What a command's module exports: resolves to the exit code, nothing meaning 0. */
export interface CommandModule {
  run(context: Context, args: string[], options: OptionValues): Promise<number | undefined>;
}

export interface CommandSpec {
  /** Words that name it, such as `['image', 'add']`. */
  path: string[];
  text: string;
  arguments: ArgumentSpec[];
  /** Settings it takes as flags, beside those that every command takes. */
  settings: SettingKey[];
  flags: FlagSpec[];
  examples: string[];
  load(): Promise<CommandModule>;
}

/** Settings that are flags of every command. */
export const GLOBAL_SETTINGS: SettingKey[] = ['server', 'token-file', 'root', 'log'];

/** Options of every command that are no settings. */
export const GLOBAL_FLAGS: FlagSpec[] = [
  { name: 'config', placeholder: 'FILE', text: 'configuration file (TOML)' },
  { name: 'json', text: 'print for programs; errors too' },
  { name: 'quiet', short: 'q', text: 'print nothing but results and errors' },
];

/** Words that are no command of their own but hold some. */
export const GROUPS: Record<string, string> = {
  image: 'images of a delta server',
  trace: 'what containers read, and when',
  optimize: 'what an order of the contents does to a run',
};

const IMAGE: ArgumentSpec = { name: 'NAME:TAG', text: 'image of the server', required: true };
const CHANGED: ArgumentSpec = {
  name: 'DIR',
  text: 'directory of a mount, or the name of changes that were kept',
  required: true,
};
const WAIT: FlagSpec = { name: 'wait', text: 'return when every byte has arrived' };
const TRACE: FlagSpec = {
  name: 'trace',
  placeholder: 'GROUP',
  text: 'record reads for this group',
};
const KEEP: FlagSpec = { name: 'keep', text: 'keep what is written, whatever ends the mount' };
const UPDATE_FROM: FlagSpec = {
  name: 'update-from',
  placeholder: 'IMAGE...',
  text: 'offer only these images (NAME:TAG or digest) as bases; otherwise all complete ones',
  multiple: true,
};
const MOUNT_SETTINGS: SettingKey[] = [
  'platform',
  'rw',
  'session',
  'wait-timeout',
  'threads',
  'passthrough',
  'opens',
  'idle',
];

const ONE_TRACE: ArgumentSpec = {
  name: 'TRACE',
  text: 'id, start of an id, or a file; the newest where not given',
  required: false,
};
const TRACES: ArgumentSpec = {
  name: 'TRACE',
  text: 'ids, starts of ids, files or directories; all of this worker where not given',
  required: false,
  variadic: true,
};
const LINE: FlagSpec[] = [
  { name: 'bandwidth', placeholder: 'RATE', text: 'bandwidth to predict for (default: 100mbit)' },
  { name: 'rtt', placeholder: 'TIME', text: 'round trip to predict for (default: 50ms)' },
];

export const COMMANDS: CommandSpec[] = [
  {
    path: ['serve'],
    text: 'serve images to workers',
    arguments: [],
    settings: ['data', 'listen', 'rate', 'registry-login', 'hosts-dir', 'tokens'],
    flags: [],
    examples: [
      'firstlight serve --data /srv/firstlight',
      'firstlight serve --data ./data --listen 0.0.0.0:7070 --rate 100mbit',
      'firstlight serve --data /srv/firstlight --tokens /etc/firstlight/tokens',
    ],
    load: () => import('./commands/serve.ts'),
  },
  {
    path: ['token'],
    text: "make a token, and the line for a server's file of tokens",
    arguments: [{ name: 'NAME', text: 'of whoever gets it, for logs', required: true }],
    settings: [],
    flags: [
      {
        name: 'may',
        placeholder: 'SCOPE,...',
        text: 'what it is for: fetch, report, change, metrics (default: fetch,report)',
      },
    ],
    examples: ['firstlight token node-7', 'firstlight token ci --may change'],
    load: () => import('./commands/token.ts'),
  },
  {
    path: ['image', 'add'],
    text: 'take an image in',
    arguments: [
      {
        name: 'SOURCE',
        text: 'docker://HOST/NAME:TAG, oci:DIR:TAG, docker-archive:FILE or rootfs:FILE.tar',
        required: true,
      },
    ],
    settings: ['data', 'platform', 'hosts-dir'],
    flags: [{ name: 'name', placeholder: 'NAME:TAG', text: 'name it gets on the server' }],
    examples: [
      'firstlight image add docker://registry.example.com/shop/redis:7',
      'firstlight image add oci:./layout:latest --name redis:7',
      'firstlight image add rootfs:debian.tar --name debian:12 --data ./data',
    ],
    load: () => import('./commands/image-add.ts'),
  },
  {
    path: ['image', 'ls'],
    text: 'list the images of the server',
    arguments: [],
    settings: ['data'],
    flags: [],
    examples: ['firstlight image ls', 'firstlight image ls --json'],
    load: () => import('./commands/image-ls.ts'),
  },
  {
    path: ['image', 'inspect'],
    text: 'show manifest, config and sizes of an image',
    arguments: [IMAGE],
    settings: ['data', 'platform'],
    flags: [],
    examples: ['firstlight image inspect redis:7'],
    load: () => import('./commands/image-inspect.ts'),
  },
  {
    path: ['image', 'rm'],
    text: 'remove images from the server',
    arguments: [{ ...IMAGE, variadic: true }],
    settings: ['data', 'platform'],
    flags: [],
    examples: ['firstlight image rm redis:6 redis:7'],
    load: () => import('./commands/image-rm.ts'),
  },
  {
    path: ['mount'],
    text: 'mount an image; returns as soon as the tree is usable',
    arguments: [IMAGE, { name: 'DIR', text: 'an existing directory', required: true }],
    settings: MOUNT_SETTINGS,
    flags: [
      WAIT,
      { name: 'name', placeholder: 'ID', text: 'name of the changes; kept ones are found again' },
      KEEP,
      TRACE,
      UPDATE_FROM,
    ],
    examples: [
      'firstlight mount redis:7 /mnt/redis',
      'firstlight mount redis:7 /mnt/redis --rw off --wait',
      'firstlight mount redis:7.1 /mnt/redis --update-from redis:7.0',
    ],
    load: () => import('./commands/mount.ts'),
  },
  {
    path: ['umount'],
    text: 'unmount; what was written below DIR is dropped, unless it is kept',
    arguments: [{ name: 'DIR', text: 'a directory that firstlight mounted', required: true }],
    settings: [],
    flags: [
      { name: 'keep', text: 'keep what was written, for "mount --name" and "commit"' },
      { name: 'lazy', text: 'detach now, end when the last user has gone' },
      { name: 'force', text: 'the same as --lazy' },
    ],
    examples: ['firstlight umount /mnt/redis', 'firstlight umount --keep /mnt/redis'],
    load: () => import('./commands/umount.ts'),
  },
  {
    path: ['run'],
    text: 'run a container from an image; returns its exit code',
    arguments: [
      IMAGE,
      { name: 'CMD', text: "command instead of the image's", required: false, variadic: true },
    ],
    settings: [...MOUNT_SETTINGS, 'runtime', 'net'],
    flags: [
      {
        name: 'name',
        placeholder: 'ID',
        text: 'name of the container, its host name, and of its changes: kept ones are found again',
      },
      KEEP,
      TRACE,
      UPDATE_FROM,
    ],
    examples: [
      'firstlight run redis:7',
      'firstlight run debian:12 -- ls -l /etc',
      'firstlight run redis:7 --name cache --net none -- redis-server --port 7000',
    ],
    load: () => import('./commands/run.ts'),
  },
  {
    path: ['ls'],
    text: 'list the mounts and images of this worker',
    arguments: [],
    settings: [],
    flags: [],
    examples: ['firstlight ls', 'firstlight ls --json'],
    load: () => import('./commands/ls.ts'),
  },
  {
    path: ['status'],
    text: 'show how far the images of the mounts have arrived',
    arguments: [{ name: 'DIR', text: 'only the mount there', required: false }],
    settings: [],
    flags: [{ name: 'follow', short: 'f', text: 'go on until all has arrived' }],
    examples: [
      'firstlight status',
      'firstlight status --follow /mnt/redis',
      'firstlight status --json',
    ],
    load: () => import('./commands/status.ts'),
  },
  {
    path: ['trace', 'on'],
    text: 'record what is read of mounts from now on',
    arguments: [{ name: 'DIR', text: 'only the mount there', required: false }],
    settings: [],
    flags: [
      { name: 'group', placeholder: 'GROUP', text: 'group of the traces (default: default)' },
    ],
    examples: ['firstlight trace on', 'firstlight trace on /mnt/redis --group shop'],
    load: async () => (await import('./commands/trace-switch.ts')).on,
  },
  {
    path: ['trace', 'off'],
    text: 'end the recording of mounts and save their traces',
    arguments: [{ name: 'DIR', text: 'only the mount there', required: false }],
    settings: [],
    flags: [],
    examples: ['firstlight trace off', 'firstlight trace off /mnt/redis'],
    load: async () => (await import('./commands/trace-switch.ts')).off,
  },
  {
    path: ['trace', 'ls'],
    text: 'list the recorded runs of this worker',
    arguments: [],
    settings: [],
    flags: [{ name: 'reported', text: 'those that the server has instead' }],
    examples: ['firstlight trace ls', 'firstlight trace ls --reported --json'],
    load: () => import('./commands/trace-ls.ts'),
  },
  {
    path: ['trace', 'show'],
    text: 'show what a run read, when, and how long it waited',
    arguments: [ONE_TRACE],
    settings: [],
    flags: [],
    examples: ['firstlight trace show', 'firstlight trace show 20260131T0815 --json'],
    load: () => import('./commands/trace-show.ts'),
  },
  {
    path: ['trace', 'export'],
    text: 'write runs, or what they say together, as JSON or CSV',
    arguments: [TRACES],
    settings: [],
    flags: [
      { name: 'format', placeholder: 'FORMAT', text: 'json or csv (default: json)' },
      {
        name: 'as',
        placeholder: 'KIND',
        text: 'trace: one run as it is; runs: groups of single runs; merged: groups with repeated runs merged (default: trace for one, merged for several)',
      },
      { name: 'output', short: 'o', placeholder: 'FILE', text: 'write there, not to stdout' },
    ],
    examples: [
      'firstlight trace export 20260131T0815 --format csv -o run.csv',
      'firstlight trace export --as merged -o collection.json',
    ],
    load: () => import('./commands/trace-export.ts'),
  },
  {
    path: ['trace', 'report'],
    text: 'send runs to the server, which orders later transfers by them',
    arguments: [TRACES],
    settings: [],
    flags: [
      { name: 'wait', text: 'return when the new order is in force' },
      { name: 'html', placeholder: 'FILE', text: 'send nothing; draw one run as a web page' },
      ...LINE,
    ],
    examples: [
      'firstlight trace report',
      'firstlight trace report ./traces/redis.json --wait',
      'firstlight trace report --html report.html 20260131T0815',
    ],
    load: () => import('./commands/trace-report.ts'),
  },
  {
    path: ['optimize', 'simulate'],
    text: 'predict when each wait of a run would end under other orders',
    arguments: [ONE_TRACE],
    settings: [],
    flags: [
      ...LINE,
      { name: 'in-order', text: 'a worker that fetches nothing beside the stream' },
      { name: 'warm', text: 'over connections that have been in use' },
      {
        name: 'image',
        placeholder: 'NAME:TAG',
        text: 'as if the run had been of this image, another version of it',
      },
      { name: 'all', text: 'show files that are not waited for, too' },
    ],
    examples: [
      'firstlight optimize simulate',
      'firstlight optimize simulate 20260131T0815 --bandwidth 20mbit --rtt 150ms',
      'firstlight optimize simulate ./traces/redis.json --image redis:7.2 --json',
    ],
    load: () => import('./commands/optimize-simulate.ts'),
  },
  {
    path: ['diff'],
    text: 'show what a mount has changed: A added, C changed, D deleted',
    arguments: [CHANGED],
    settings: [],
    flags: [],
    examples: ['firstlight diff /mnt/redis', 'firstlight diff --json /mnt/redis'],
    load: () => import('./commands/diff.ts'),
  },
  {
    path: ['commit'],
    text: 'make an image of what a mount has changed: its layers and one more',
    arguments: [CHANGED, { name: 'NAME:TAG', text: 'name it gets on the server', required: false }],
    settings: ['hosts-dir'],
    flags: [
      { name: 'to', placeholder: 'oci:DIR:TAG', text: 'write it into an OCI layout' },
      {
        name: 'base',
        placeholder: 'SOURCE',
        text: "where the old image's layers are to be had, for --to (default: the layout; else its files are packed anew)",
      },
      { name: 'comment', placeholder: 'TEXT', text: "written into the image's history" },
    ],
    examples: [
      'firstlight commit /mnt/redis redis:7-mine',
      'firstlight commit /mnt/redis --to oci:./layout:7-mine --base docker://registry.example.com/redis:7',
    ],
    load: () => import('./commands/commit.ts'),
  },
  {
    path: ['gc'],
    text: 'remove contents that no image uses',
    arguments: [],
    settings: [],
    flags: [
      { name: 'all', text: 'images too, where nothing uses them now' },
      { name: 'snapshots', text: 'kept changes too, where nothing has them mounted' },
    ],
    examples: ['firstlight gc', 'firstlight gc --all', 'firstlight gc --snapshots'],
    load: () => import('./commands/gc.ts'),
  },
  {
    path: ['verify'],
    text: 'read every content again and compare it with its digest',
    arguments: [],
    settings: [],
    flags: [],
    examples: ['firstlight verify', 'firstlight verify --json'],
    load: () => import('./commands/verify.ts'),
  },
  {
    path: ['doctor'],
    text: 'check what this machine gives, and say what to do',
    arguments: [],
    settings: ['runtime'],
    flags: [],
    examples: ['firstlight doctor', 'firstlight doctor --server http://delta.example.com:7070'],
    load: () => import('./commands/doctor.ts'),
  },
  {
    path: ['daemon'],
    text: 'run the daemon of this root in the foreground (commands start it by themselves)',
    arguments: [],
    settings: [
      'idle',
      'snapshotter',
      'prepare-timeout',
      'keep-warm',
      'hosts-dir',
      'connections',
      'metrics',
      'platform',
      'wait-timeout',
      'threads',
      'passthrough',
      'opens',
    ],
    flags: [
      { name: 'stop', text: 'unmount everything and end the daemon that runs' },
      { name: 'background', text: 'as a command starts it: ends when idle' },
    ],
    examples: [
      'firstlight daemon --snapshotter /run/firstlight/snapshots.sock',
      'firstlight daemon --config /etc/firstlight/config.toml',
      'firstlight daemon --stop',
    ],
    load: () => import('./commands/daemon.ts'),
  },
];

/** The command that the words at the front of `words` name, with the number of words. */
export function findCommand(words: string[]): CommandSpec | undefined {
  return COMMANDS.find((command) => command.path.every((word, i) => words[i] === word));
}
