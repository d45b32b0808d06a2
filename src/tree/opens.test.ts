// What a mount says to its session about opens, and when; the session does as it is told. The kernel's
// side is in test/native, both together in test/e2e.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { quietLog } from '../../test/receive/fixture.ts';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { fromText, makeDirectory } from '../image/tree.ts';
import { type NativeTemplate, NO_STATS, OPENS, type SessionFeatures } from '../native/index.ts';
import { FsInstance } from './fs-instance.ts';
import type { Session, SessionRequest } from './session.ts';
import { Template } from './template.ts';

const EIO = 5;
const BOTH = Uint32Array.of(0, 1);

/** The session of a mount, with what it was told, in order. */
class Told {
  readonly said: string[] = [];
  unseen = false;
  request: SessionRequest | undefined;
  start = async () => {
    this.said.push('start');
    return {} as SessionFeatures;
  };
  unmount = async () => this.request?.onClosed(undefined);
  stats = () => ({ ...NO_STATS, opensUnseen: this.unseen });
  setOpens = (opens: number) => {
    this.said.push(Object.entries(OPENS).find(([, number]) => number === opens)![0]);
    return !this.unseen;
  };
  setTracing = (on: boolean) => this.said.push(on ? 'trace' : 'no trace');
  watchOpens = async () => void this.said.push('watch');
  unwatchOpens = async () => void this.said.push('unwatch');
  forgetReads = async () => void this.said.push('forget reads');
  takeTrace = () => ({ accesses: [], lost: 0 });
  /** What was said since the last call. */
  heard(): string[] {
    return this.said.splice(0);
  }
}

interface World {
  template: Template;
  session: Told;
  instance: FsInstance;
}

/** A mount of an image of two contents that is not started yet. */
async function world(t: ExecutionContext): Promise<World> {
  const scratch = await mkdtemp(join(tmpdir(), 'fl-opens-'));
  t.teardown(() => rm(scratch, { recursive: true, force: true }));
  const root = makeDirectory('', 0);
  for (const name of ['a', 'b']) {
    const inode = { ...root.inode, type: 'file' as const, size: 3, digest: name.repeat(64) };
    root.children!.set(fromText(name), { name: fromText(name), inode });
  }
  const twin = new Proxy({}, { get: () => () => undefined }) as NativeTemplate;
  const template = new Template('sha256:x', new Toc(buildToc(root).bytes), twin);
  const session = new Told();
  const instance = new FsInstance({
    id: 'one',
    template,
    mountPoint: join(scratch, 'mnt'),
    source: 'app:1',
    rw: 'off',
    snapshots: scratch,
    makeSession: (_, request) => {
      session.request = request;
      return session as unknown as Session;
    },
    waitTimeoutMs: 0,
    wanted: () => undefined,
    traces: { directory: join(scratch, 'traces'), platform: 'linux/amd64', receivedBytes: () => 0 },
    log: quietLog().log,
  });
  return { template, session, instance };
}

test('opens are seen while contents arrive, and left to the kernel with the last one', async (t) => {
  const { template, session, instance } = await world(t);
  await instance.start();
  t.deepEqual(session.heard(), ['Cached', 'start']);
  template.markReady(Uint32Array.of(0));
  template.markReady(Uint32Array.of(0));
  t.deepEqual(session.heard(), []);
  template.markReady(Uint32Array.of(1));
  t.deepEqual(session.heard(), ['Unseen']);
  t.is(instance.status().features?.opens, 'seen', 'until a file is opened');
  session.unseen = true;
  t.is(instance.status().features?.opens, 'unseen');
  await instance.teardown();
});

test('a complete image is left to the kernel before the first open can come', async (t) => {
  const { template, session, instance } = await world(t);
  template.markReady(BOTH);
  await instance.start();
  t.deepEqual(session.heard(), ['Unseen', 'start']);
  await instance.teardown();
});

test('an image that has lost a content is not complete', async (t) => {
  const { template, session, instance } = await world(t);
  template.markReady(BOTH);
  await instance.start();
  session.heard();
  template.markFailed(Uint32Array.of(1), EIO);
  template.clearFailed(Uint32Array.of(1));
  t.deepEqual(session.heard(), ['Cached']);
  template.markReady(Uint32Array.of(1));
  t.deepEqual(session.heard(), ['Unseen']);
  await instance.teardown();
  template.markFailed(Uint32Array.of(1), EIO);
  t.deepEqual(session.heard(), [], 'nothing is said to a session that has ended');
});

test('while a trace is recorded all opens are seen, from its start to its end', async (t) => {
  const { template, session, instance } = await world(t);
  await instance.setOptimizerOn('shop');
  await instance.start();
  t.deepEqual(session.heard(), ['Seen', 'trace', 'start']);
  template.markReady(BOTH);
  t.deepEqual(session.heard(), ['Seen']);
  // The next run begins where this one ends: no open is missed between.
  await instance.setOptimizerOn('other');
  t.deepEqual(session.heard(), ['no trace', 'Seen', 'trace']);
  await instance.setOptimizerOff();
  t.deepEqual(session.heard(), ['no trace', 'Unseen']);
  await instance.setOptimizerOn('again');
  t.deepEqual(session.heard(), ['Seen', 'trace'], 'no open has come meanwhile');
  await instance.teardown();
});

test('where the kernel opens alone its opens are watched, from the start of a trace to its end', async (t) => {
  const { template, session, instance } = await world(t);
  template.markReady(BOTH);
  await instance.start();
  session.heard();
  session.unseen = true;
  await instance.setOptimizerOn('late');
  t.deepEqual(session.heard(), ['Seen', 'watch', 'trace', 'forget reads']);
  await instance.setOptimizerOn('next');
  t.deepEqual(session.heard(), ['unwatch', 'no trace', 'Seen', 'watch', 'trace', 'forget reads']);
  await instance.setOptimizerOff();
  t.deepEqual(session.heard(), ['unwatch', 'no trace', 'Unseen']);
  await instance.teardown();
});

test('a trace that would see nothing is refused, and says what to do', async (t) => {
  const { template, session, instance } = await world(t);
  template.markReady(BOTH);
  await instance.start();
  session.heard();
  session.unseen = true;
  session.watchOpens = () => Promise.reject(new Error('fanotify_mark: Operation not permitted'));
  const error = await t.throwsAsync(instance.setOptimizerOn('late'));
  t.like(error, {
    kind: 'unsupported',
    hint: 'mount it anew with --trace GROUP, or with --opens seen',
  });
  t.regex(error!.message, /cannot be watched .*not permitted/);
  t.false(session.heard().includes('trace'));
  t.is(instance.optimizeGroup, undefined);
  await instance.teardown();
});

test('a trace that cannot be begun leaves opens as they were', async (t) => {
  const { template, session, instance } = await world(t);
  template.markReady(BOTH);
  await instance.start();
  session.heard();
  session.setTracing = () => {
    throw new Error('no');
  };
  await t.throwsAsync(instance.setOptimizerOn('x'));
  t.deepEqual(session.heard(), ['Seen', 'Unseen']);
  session.unseen = true;
  await t.throwsAsync(instance.setOptimizerOn('x'));
  t.deepEqual(session.heard(), ['Seen', 'watch', 'unwatch', 'Unseen']);
  await instance.teardown();
});
