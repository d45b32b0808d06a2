// The wrapper alone, over an addon that does as it is told. The kernel's side is in test/native.
import test from 'ava';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { FirstlightError } from '../errors/errors.ts';
import { makeDirectory } from '../image/tree.ts';
import type {
  NativeAddon,
  NativeTemplate,
  SessionFeatures,
  SessionOptions,
  SessionStats,
} from '../native/index.ts';
import { Template } from '../tree/template.ts';
import { KernelSession } from './kernel-session.ts';

const FEATURES: SessionFeatures = {
  protocol: '7.45',
  transport: 'dev-fuse',
  passthrough: true,
  directIoAllowMmap: true,
  threads: 2,
};

/** A session whose calls fail with the code they are given, as the addon fails. */
class Told {
  static failure: { code: string; message: string } | undefined;
  static made: Told[] = [];
  readonly options: SessionOptions;

  constructor(_template: NativeTemplate, options: SessionOptions) {
    this.options = options;
    Told.made.push(this);
  }
  async #obey<T>(value: T): Promise<T> {
    const { failure } = Told;
    if (failure !== undefined) throw Object.assign(new Error(failure.message), failure);
    return value;
  }
  start = () => this.#obey(FEATURES);
  unmount = () => this.#obey(undefined);
  abort = () => this.#obey(undefined);
  stats = () => ({ lookups: 3 }) as SessionStats;
}

interface World {
  session: KernelSession;
  template: Template;
  native: Told;
  ended: (string | undefined)[];
  closes: () => number;
}

function world(): World {
  let closed = 0;
  const twin = { close: () => closed++ } as unknown as NativeTemplate;
  const template = new Template('sha256:x', new Toc(buildToc(makeDirectory('', 0)).bytes), twin);
  const ended: (string | undefined)[] = [];
  const session = new KernelSession(
    template,
    {
      mountPoint: '/mnt/x',
      source: 'image:1',
      waitTimeoutMs: 300_000,
      onWanted: () => undefined,
      onTimeout: () => undefined,
      onClosed: (error) => ended.push(error),
    },
    { addon: { Session: Told } as unknown as NativeAddon },
  );
  return { session, template, native: Told.made.at(-1)!, ended, closes: () => closed };
}

test.serial('the template stays open until the kernel has let go of the mount', async (t) => {
  Told.failure = undefined;
  const { session, template, native, ended, closes } = world();
  t.deepEqual(await session.start(), FEATURES);
  t.like(native.options, {
    mountPoint: '/mnt/x',
    source: 'image:1',
    threads: 0,
    passthrough: true,
  });
  await session.unmount(true);
  // The mount is detached, and its last user still there.
  template.release();
  t.is(closes(), 0);
  native.options.onClosed(undefined);
  t.is(closes(), 1);
  t.deepEqual(ended, [undefined]);
  t.is(session.stats().lookups, 3);
});

test.serial('a mount that fails gives its template back', async (t) => {
  Told.failure = { code: 'EIO', message: 'EIO: handshake' };
  const { session, template, closes } = world();
  await t.throwsAsync(session.start(), { instanceOf: FirstlightError });
  template.release();
  t.is(closes(), 1);
});

const STARTS: [code: string, message: string, kind: string, line: RegExp][] = [
  [
    'EACCES',
    'EACCES: open /dev/fuse: Permission denied',
    'permission',
    /\/dev\/fuse .* run as root/,
  ],
  ['EPERM', 'EPERM: mount /mnt/x: Operation not permitted', 'permission', /\/mnt\/x .* SYS_ADMIN/],
  ['ENOENT', 'ENOENT: open /dev/fuse: No such file', 'unsupported', /modprobe fuse/],
  ['ENODEV', 'ENODEV: mount /mnt/x: No such device', 'unsupported', /modprobe fuse/],
  ['ENOENT', 'ENOENT: mount /mnt/x: No such file', 'not-found', /no directory \/mnt\/x/],
  ['ENOTDIR', 'ENOTDIR: mount /mnt/x', 'usage', /not a directory/],
  ['ENOTCONN', 'ENOTCONN: mount /mnt/x', 'busy', /umount -l \/mnt\/x/],
  ['EBUSY', 'EBUSY: mount /mnt/x', 'busy', /in use/],
  ['EPROTO', 'EPROTO: FUSE protocol 7.27 is too old', 'unsupported', /7\.27 .* Linux 5\.4/],
  ['ENOMEM', 'ENOMEM: mount /mnt/x: Cannot allocate memory', 'internal', /Cannot allocate/],
];

for (const [code, message, kind, line] of STARTS) {
  test.serial(`a start that fails with "${message}" says what to do`, async (t) => {
    Told.failure = { code, message };
    const error = await t.throwsAsync<FirstlightError>(world().session.start());
    t.is(error?.kind, kind as never);
    t.regex(error!.line, line);
    t.false(error!.line.includes('\n'));
  });
}

test.serial('a busy unmount is an error of that kind, others keep their code', async (t) => {
  Told.failure = { code: 'EBUSY', message: 'EBUSY: umount /mnt/x' };
  await t.throwsAsync(world().session.unmount(false), { message: '/mnt/x is in use' });
  Told.failure = { code: 'EIO', message: 'EIO: umount /mnt/x' };
  await t.throwsAsync(world().session.unmount(false), { code: 'EIO' });
});
