// The keeper's process (keeper-protocol.ts says what it is for): `node keeper-main SOCKET`. It holds the
// mounts and their tables, answers the kernel on native threads, and remembers who waits for what while no
// daemon is there. It decides nothing. It ends when nothing is mounted and no daemon is connected, or is told to.
import { chmod, mkdir, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { makeLogger } from '../log/log.ts';
import {
  type NativeSession,
  type NativeTemplate,
  native,
  type Opens,
  type TemplateOptions,
} from '../native/index.ts';
import { MNT_DETACH, mountAt, readMounts } from '../store/mounts.ts';
import {
  decodeNumbers,
  KEEPER_VERSION,
  type KeeperMessage,
  type KeeperRequest,
  type KeeperState,
  type KeptMountOptions,
  Lines,
  type MarkMessage,
  type SessionFeatures,
} from './keeper-protocol.ts';

/** How often counters are sent, where they have changed. */
const STATS_MS = 500;
/** A daemon that is being restarted comes back within this, also where nothing is mounted. */
const ALONE_MS = 10_000;
const EIO = 5;

interface Image {
  template: NativeTemplate;
  /** Set from the moment it is being mounted. */
  session?: NativeSession;
  features?: Promise<SessionFeatures>;
  mountPoint?: string;
  /** As /proc/mounts shows it. */
  source?: string;
  /** What is to become of opens, as told last. */
  opens?: Opens | undefined;
  /** Requests that look whether it is mounted still: its tables stay open for them. */
  looking: number;
  /** Parts that were waited for, by content, until it is whole. */
  wants: Map<number, { first: number; last: number }>;
  /** The last counters that were sent. */
  sent: string;
}

const log = makeLogger('keeper');
const images = new Map<string, Image>();
/** Images whose mount point is gone while containers still have them below their own mounts. */
const detached = new Map<Image, string>();
const [socketPath = ''] = process.argv.slice(2);
let daemon: Socket | undefined;
let alone: NodeJS.Timeout | undefined;

function imagesOf(digest: string): Image[] {
  const image = images.get(digest);
  const gone = [...detached].flatMap(([each, of]) => (of === digest ? [each] : []));
  return image === undefined ? gone : [image, ...gone];
}

function isIdle(): boolean {
  return images.size === 0 && detached.size === 0;
}

function send(message: KeeperMessage): void {
  if (daemon?.writable === true) daemon.write(`${JSON.stringify(message)}\n`);
}

/** Ends the process a while after there is nothing left to do. */
function lookAlone(): void {
  clearTimeout(alone);
  if (daemon !== undefined || !isIdle()) return;
  alone = setTimeout(end, ALONE_MS);
}

function end(): void {
  if (!isIdle()) return;
  void rm(socketPath, { force: true }).finally(() => process.exit(0));
}

function mark({ image: digest, what, numbers, errno }: MarkMessage): void {
  const list = decodeNumbers(numbers);
  for (const image of imagesOf(digest)) {
    if (what === 'parts') image.template.markParts(list);
    else if (what === 'failed') image.template.markFailed(list, errno ?? EIO);
    else if (what === 'clear') image.template.clearFailed(list);
    else if (what === 'forget') image.template.forget(list);
    else {
      image.template.markReady(list);
      for (const content of list) image.wants.delete(content);
    }
  }
}

/** Where it is open already, its files may be others by now: an image that was removed and fetched again. */
function openImage(digest: string, places: TemplateOptions): void {
  for (const image of imagesOf(digest)) {
    if (image.template.reopen?.(places) === false) setAside(digest, image);
  }
  if (images.has(digest)) return;
  const template = new (native().Template)(places);
  images.set(digest, { template, wants: new Map(), sent: '', looking: 0 });
}

/**
 * What is said of an image whose contents are numbered in another way is not for this one: who has it mounted
 * reads what was there, and the next mount takes its place.
 */
function setAside(digest: string, image: Image): void {
  log.error({ image: digest }, 'set aside: the store has another TOC of this image by now');
  if (images.get(digest) === image) images.delete(digest);
  if (image.features === undefined) closeUnused(digest, image);
  else detached.set(image, `${digest}, set aside`);
}

function setOpens(image: Image, opens: Opens): void {
  image.opens = opens;
  image.session?.setOpens(opens);
}

function wanted(digest: string, image: Image, content: number, first: number, last: number): void {
  const known = image.wants.get(content) ?? { first, last };
  const all = { first: Math.min(first, known.first), last: Math.max(last, known.last) };
  image.wants.set(content, all);
  if (imagesOf(digest).includes(image))
    send({ event: 'wanted', image: digest, content, first, last });
}

/** Closes an image's tables, unless the one that followed it has them too, or is about to. */
function closeUnused(digest: string, { template, looking }: Image): void {
  if (looking > 0 || imagesOf(digest).some((other) => other.template === template)) return;
  template.close();
}

function forget(digest: string, image: Image): void {
  if (images.get(digest) === image) images.delete(digest);
  else if (!detached.delete(image)) return;
  closeUnused(digest, image);
  lookAlone();
}

/** Unmounts. The session goes on for those who still have it below a mount of their own. */
async function unmount(digest: string, detach: boolean): Promise<void> {
  const image = images.get(digest);
  if (image?.session === undefined) return;
  await image.session.unmount(detach);
  if (images.get(digest) !== image) return;
  images.delete(digest);
  detached.set(image, digest);
  log.warn({ image: digest }, 'unmounted, and still in use');
}

/** Detaches whatever a keeper that was killed, or is of another version, has at a mount point. */
async function clear(mountPoint: string): Promise<void> {
  while (mountAt(await readMounts(), mountPoint) !== undefined) {
    await native().umount(mountPoint, MNT_DETACH);
  }
}

/** Makes room for a new mount of an image whose mount point somebody has detached while it was in use. */
async function lookMounted(digest: string, image: Image): Promise<Image> {
  const { mountPoint, source, features } = image;
  if (mountPoint === undefined || features === undefined) return image;
  image.looking++;
  try {
    await features;
    const isMounted = mountAt(await readMounts(), mountPoint)?.source === source;
    const present = images.get(digest);
    if (present !== undefined && (isMounted || present !== image)) return present;
    const { template, opens } = image;
    const next: Image = { template, opens, wants: new Map(), sent: '', looking: 0 };
    images.set(digest, next);
    // Else its session has ended meanwhile.
    if (present === image) detached.set(image, digest);
    log.warn({ image: digest, mountPoint }, 'unmounted from outside');
    return next;
  } finally {
    image.looking--;
    if (!imagesOf(digest).includes(image)) closeUnused(digest, image);
  }
}

async function startSession(
  digest: string,
  image: Image,
  options: KeptMountOptions,
): Promise<SessionFeatures> {
  await clear(options.mountPoint);
  await mkdir(options.mountPoint, { recursive: true, mode: 0o700 });
  const session = new (native().Session)(image.template, {
    ...options,
    allowOther: true,
    onWanted: (content, first, last) => wanted(digest, image, content, first, last),
    onTimeout: (content, waitedMs) => {
      if (!imagesOf(digest).includes(image)) return;
      send({ event: 'timeout', image: digest, content, waitedMs });
    },
    onClosed: (error) => {
      log[error === undefined ? 'info' : 'error']({ image: digest, error }, 'mount ended');
      if (images.get(digest) === image) send({ event: 'closed', image: digest, error });
      forget(digest, image);
    },
  });
  session.setOpens(image.opens ?? options.opens);
  const features = await session.start();
  image.session = session;
  // It may have been told anew meanwhile.
  if (image.opens !== undefined) setOpens(image, image.opens);
  log.info({ image: digest, mountPoint: options.mountPoint }, 'mounted');
  return features;
}

async function mount(digest: string, options: KeptMountOptions): Promise<SessionFeatures> {
  const open = images.get(digest);
  if (open === undefined) throw new Error(`${digest} is not open`);
  // Before what is said after the request is heard.
  setOpens(open, options.opens);
  const image = await lookMounted(digest, open);
  if (image.features === undefined) {
    image.mountPoint = options.mountPoint;
    image.source = options.source;
    image.features = startSession(digest, image, options);
    image.features.catch(() => forget(digest, image));
  }
  const features = await image.features;
  // The daemon may be another one than heard of these.
  image.sent = '';
  for (const { wants } of imagesOf(digest)) {
    for (const [content, { first, last }] of wants) {
      send({ event: 'wanted', image: digest, content, first, last });
    }
  }
  return features;
}

function state(): KeeperState {
  const mounts = [...images].flatMap(([image, { session, mountPoint }]) =>
    session === undefined || mountPoint === undefined ? [] : [{ image, mountPoint }],
  );
  return { version: KEEPER_VERSION, pid: process.pid, mounts };
}

async function answer(request: KeeperRequest): Promise<unknown> {
  switch (request.op) {
    case 'hello':
      return state();
    case 'mount':
      return mount(request.image, request.options);
    case 'unmount':
      return unmount(request.image, request.detach);
    case 'end':
      // After the answer.
      setTimeout(end, 10);
      return undefined;
  }
}

function handle(socket: Socket, request: KeeperRequest): void {
  if (request.op === 'hello') {
    // A daemon that was killed may not have been heard to go.
    if (daemon !== socket) daemon?.destroy();
    daemon = socket;
    clearTimeout(alone);
  }
  if (request.op === 'open') {
    openImage(request.image, request.places);
    return;
  }
  if (request.op === 'mark') {
    mark(request);
    return;
  }
  if (request.op === 'opens') {
    for (const image of imagesOf(request.image)) setOpens(image, request.opens);
    return;
  }
  const { seq } = request;
  answer(request).then(
    (result) => send({ seq, result: result ?? null }),
    (error: NodeJS.ErrnoException) =>
      send({ seq, error: { code: error.code, message: error.message } }),
  );
}

function accept(socket: Socket): void {
  const lines = new Lines();
  socket.setEncoding('utf8');
  socket.on('error', () => undefined); // `close` follows.
  socket.on('close', () => {
    if (daemon !== socket) return;
    daemon = undefined;
    log.info({ mounts: images.size }, 'the daemon has gone');
    lookAlone();
  });
  socket.on('data', (chunk: string) => {
    for (const line of lines.take(chunk)) {
      try {
        handle(socket, JSON.parse(line) as KeeperRequest);
      } catch (error) {
        log.error({ err: error }, 'a request was not understood');
      }
    }
  });
}

function sendStats(): void {
  for (const [digest, image] of images) {
    const stats = image.session?.stats();
    if (stats === undefined || daemon === undefined) continue;
    const counted = { stats, waiting: image.template.waiting() };
    const text = JSON.stringify(counted);
    if (text === image.sent) continue;
    image.sent = text;
    send({ event: 'stats', image: digest, ...counted });
  }
}

/** Ends on request where nothing is mounted; containers are not to lose their files by a signal. */
function onSignal(signal: NodeJS.Signals): void {
  if (isIdle()) {
    end();
    return;
  }
  log.warn(
    { signal, mounts: images.size + detached.size },
    'not ended: images are mounted for containers',
  );
}

for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, onSignal);
process.on('uncaughtException', (error) => log.error({ err: error }, 'unexpected'));
process.chdir('/');
const mask = process.umask(0o177);
await rm(socketPath, { force: true });
const server = createServer(accept);
await new Promise<void>((resolve, reject) => {
  server.once('error', reject);
  server.listen(socketPath, resolve);
});
process.umask(mask);
await chmod(socketPath, 0o600);
setInterval(sendStats, STATS_MS).unref();
lookAlone();
log.info({ pid: process.pid }, 'ready');
