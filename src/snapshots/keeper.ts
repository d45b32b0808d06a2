// The daemon's end of the keeper (keeper-protocol.ts): starts it when something is to be mounted, finds it again
// after a restart, and lets a mount in it look like any other session. What does not live here: which images are
// mounted (trees.ts).
import { spawn } from 'node:child_process';
import { mkdir, open, rename, stat } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { dirname, extname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import {
  NO_STATS,
  native,
  OPENS,
  type Opens,
  type SessionFeatures,
  type SessionStats,
} from '../native/index.ts';
import { MNT_DETACH } from '../store/mounts.ts';
import type { SessionFactory, SessionRequest } from '../tree/session.ts';
import type { Follower, Template } from '../tree/template.ts';
import {
  encodeNumbers,
  KEEPER_VERSION,
  type KeeperMessage,
  type KeeperRequest,
  type KeeperState,
  type KeptMountOptions,
  Lines,
  type MarkMessage,
} from './keeper-protocol.ts';
import { tryConnect } from './keeper-socket.ts';
import { KeptSession } from './kept-session.ts';

/** A keeper that was just started has so long to listen. */
const START_MS = 20_000;
/** One that is there answers within this, or is left alone. */
const HELLO_MS = 30_000;
/** Its log begins anew beyond this. */
const LOG_MAX_BYTES = 1 << 20;

type Asked = Extract<KeeperRequest, { seq: number }>;
/** A request without its number. */
type Ask = Asked extends infer R ? (R extends Asked ? Omit<R, 'seq'> : never) : never;

/** Hears of one mount. */
interface Listener {
  request: SessionRequest;
  stats: SessionStats;
  /** Requests that wait in the keeper, as old as `stats`. */
  waiting: number;
  /** The keeper has said so: an end that it tells before is that of the mount which was there before. */
  isMounted: boolean;
  stop(): void;
}

export interface KeeperOptions {
  /** Socket of the keeper. */
  socket: string;
  /** File that it logs to. */
  logFile: string;
  threads: number;
  passthrough: boolean;
  /** The kernel may be left to open files alone. */
  unseenOpens?: boolean;
  log: Logger;
}

export class Keeper {
  readonly #options: KeeperOptions;
  readonly #pending = new Map<number, Pick<PromiseWithResolvers<unknown>, 'resolve' | 'reject'>>();
  readonly #listeners = new Map<string, Listener>();
  #socket: Socket | undefined;
  #connecting: Promise<void> | undefined;
  #next = 1;
  #closed = false;
  /** It has been said that a keeper of another version is there. */
  #toldForeign = false;

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  /** Looks for a keeper that an earlier daemon has left; what it has mounted. Empty where there is none. */
  async find(): Promise<KeeperState['mounts']> {
    const { state } = await this.#reach();
    if (state === undefined) return [];
    const { pid, mounts } = state;
    if (mounts.length > 0) this.#options.log.info({ pid, mounts: mounts.length }, 'keeper found');
    return mounts;
  }

  /**
   * Connects to the keeper of this version, beside one of another that cannot be spoken to.
   * @returns what it has mounted, or else the socket at which one may be started
   */
  async #reach(): Promise<{ state: KeeperState; free?: string } | { state?: never; free: string }> {
    const { socket: usual } = this.#options;
    let free: string | undefined;
    for (const path of [usual, usual.replace(/\.sock$/, `-${KEEPER_VERSION}.sock`)]) {
      const socket = await tryConnect(path);
      if (socket === undefined) {
        free ??= path;
        continue;
      }
      const state = await this.#greet(socket);
      if (state !== undefined) return { state };
    }
    if (free !== undefined) return { free };
    throw new FirstlightError('busy', `processes that do not answer listen on ${usual}`, {
      hint: 'end them, or restart the machine: containers that stand on them must be restarted',
    });
  }

  /** Says hello; undefined where the other side is of another version, or does not answer: it is left alone. */
  async #greet(socket: Socket): Promise<KeeperState | undefined> {
    const mute = Promise.withResolvers<undefined>();
    const timer = setTimeout(() => mute.resolve(undefined), HELLO_MS);
    const hello = this.#use(socket);
    // It may hang up: then it is no keeper of ours, and which it is does not matter.
    const state = await Promise.race([hello.catch(() => undefined), mute.promise]);
    clearTimeout(timer);
    if (state?.version === KEEPER_VERSION) return state;
    this.#socket = undefined;
    socket.destroy();
    const { pid, version } = state ?? {};
    if (!this.#toldForeign) {
      this.#toldForeign = true;
      this.#options.log.error(
        { pid, version, mounts: state?.mounts?.length },
        'images that running containers stand on are kept by another version of firstlight: they can read ' +
          'what has arrived, and nothing more arrives for them: restart those containers',
      );
    }
    return undefined;
  }

  async #use(socket: Socket): Promise<KeeperState> {
    const lines = new Lines();
    socket.setEncoding('utf8');
    socket.on('error', () => undefined); // `close` follows.
    socket.on('close', () => this.#lost(socket));
    socket.on('data', (chunk: string) => {
      for (const line of lines.take(chunk)) this.#hear(JSON.parse(line) as KeeperMessage);
    });
    // Its work goes on by itself: it holds no daemon up that wants to end.
    socket.unref();
    this.#socket = socket;
    return (await this.#ask({ op: 'hello' })) as KeeperState;
  }

  /** Connects, and starts a keeper where there is none. */
  #connected(): Promise<void> {
    if (this.#socket !== undefined) return Promise.resolve();
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #connect(): Promise<void> {
    const { state, free } = await this.#reach();
    const { pid } = state ?? (await this.#begin(free));
    this.#options.log.info({ pid }, 'keeper connected');
  }

  /** Starts a keeper and says hello to it. */
  async #begin(path: string): Promise<KeeperState> {
    const ended = await this.#start(path);
    const deadline = Date.now() + START_MS;
    for (;;) {
      const socket = await tryConnect(path);
      if (socket !== undefined) return this.#use(socket);
      if (ended.code !== undefined || Date.now() > deadline) {
        throw new FirstlightError('internal', 'the process that keeps mounts does not start', {
          hint: `see ${this.#options.logFile}`,
        });
      }
      await sleep(10);
    }
  }

  async #start(socket: string): Promise<{ code: number | undefined }> {
    const { logFile } = this.#options;
    await mkdir(dirname(socket), { recursive: true, mode: 0o700 });
    const bytes = await stat(logFile).then(
      ({ size }) => size,
      // The first one.
      () => 0,
    );
    if (bytes > LOG_MAX_BYTES) await rename(logFile, `${logFile}.old`);
    const file = fileURLToPath(
      new URL(`./keeper-main${extname(import.meta.url)}`, import.meta.url),
    );
    const output = await open(logFile, 'a', 0o600);
    const { NOTIFY_SOCKET: _, ...env } = process.env;
    // A session and group of its own: what ends the daemon's terminal or group does not end it.
    const child = spawn(process.execPath, [file, socket], {
      detached: true,
      stdio: ['ignore', output.fd, output.fd],
      cwd: '/',
      env,
    });
    const ended: { code: number | undefined } = { code: undefined };
    child.once('error', () => {
      ended.code = -1;
    });
    child.once('exit', (code) => {
      ended.code = code ?? -1;
    });
    child.unref();
    await output.close();
    return ended;
  }

  #lost(socket: Socket): void {
    if (this.#socket !== socket) return;
    this.#socket = undefined;
    const error = new FirstlightError('internal', 'the process that keeps mounts has gone', {
      hint: `see ${this.#options.logFile}`,
    });
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
    if (this.#closed) return;
    for (const image of [...this.#listeners.keys()]) this.#end(image, error.message);
  }

  #end(image: string, error: string | undefined): void {
    const listener = this.#listeners.get(image);
    this.#listeners.delete(image);
    listener?.stop();
    listener?.request.onClosed(error);
  }

  #hear(message: KeeperMessage): void {
    if ('seq' in message) {
      const pending = this.#pending.get(message.seq);
      this.#pending.delete(message.seq);
      if ('result' in message) pending?.resolve(message.result);
      else {
        const { code, message: text } = message.error;
        pending?.reject(Object.assign(new Error(text), { code }));
      }
      return;
    }
    const listener = this.#listeners.get(message.image);
    if (listener === undefined) return;
    if (message.event === 'wanted') {
      listener.request.onWanted(message.content, message.first, message.last);
    } else if (message.event === 'timeout') {
      listener.request.onTimeout(message.content, message.waitedMs);
    } else if (message.event === 'stats') {
      listener.stats = message.stats;
      listener.waiting = message.waiting ?? 0;
    } else if (listener.isMounted) {
      this.#end(message.image, message.error);
    }
  }

  #send(request: KeeperRequest): void {
    this.#socket?.write(`${JSON.stringify(request)}\n`);
  }

  /** @param onResult  called with the result's arrival, before what the keeper says after it is heard */
  #ask(request: Ask, onResult: () => void = () => undefined): Promise<unknown> {
    if (this.#socket === undefined) {
      return Promise.reject(new FirstlightError('internal', 'no process keeps mounts'));
    }
    const seq = this.#next++;
    const pending = Promise.withResolvers<unknown>();
    const { resolve, reject, promise } = pending;
    const heard = (result: unknown) => {
      onResult();
      resolve(result);
    };
    this.#pending.set(seq, { resolve: heard, reject });
    this.#send({ ...request, seq } as KeeperRequest);
    return promise;
  }

  /** Makes sessions of one image in the keeper. */
  readonly sessions: SessionFactory = (template, request) =>
    new KeptSession(this, template, request);

  /** Mounts an image, or takes over its mount where it is there. */
  async mount(
    template: Template,
    request: SessionRequest,
    opens: () => Opens = () => OPENS.Seen,
  ): Promise<SessionFeatures> {
    await this.#connected();
    const { digest: image, places } = template;
    if (places === undefined) throw new FirstlightError('internal', 'the image is in no store');
    this.#send({ op: 'open', image, places });
    // One whose mount point is gone while it was in use: from here on this one follows for both.
    this.#listeners.get(image)?.stop();
    const stop = template.follow(this.#marks(image));
    const listener = { request, stats: NO_STATS, waiting: 0, isMounted: false, stop };
    this.#listeners.set(image, listener);
    const onMounted = () => {
      listener.isMounted = true;
    };
    const { mountPoint, source, waitTimeoutMs } = request;
    const { threads, passthrough } = this.#options;
    const lanes = threads === 0 ? Math.min(4, navigator.hardwareConcurrency) : threads;
    const options: KeptMountOptions = {
      mountPoint,
      source,
      waitTimeoutMs,
      threads: lanes,
      passthrough,
      opens: opens(),
    };
    try {
      return (await this.#ask({ op: 'mount', image, options }, onMounted)) as SessionFeatures;
    } catch (cause) {
      this.#listeners.delete(image);
      stop();
      const why = (cause as Error).message;
      throw new FirstlightError('internal', `${mountPoint} cannot be mounted: ${why}`, { cause });
    }
  }

  #marks(image: string): Follower {
    const mark = (what: MarkMessage['what'], numbers: Uint32Array, errno?: number) =>
      this.#send({
        op: 'mark',
        image,
        what,
        numbers: encodeNumbers(numbers),
        ...(errno === undefined ? {} : { errno }),
      });
    return {
      markReady: (contents) => mark('ready', contents),
      markParts: (parts) => mark('parts', parts),
      markFailed: (contents, errno) => mark('failed', contents, errno),
      clearFailed: (contents) => mark('clear', contents),
      forget: (contents) => mark('forget', contents),
      waiting: () => this.#listeners.get(image)?.waiting ?? 0,
    };
  }

  /** Says what is to become of opens of an image that is mounted, or being mounted. */
  setOpens(image: string, opens: Opens): void {
    if (this.#listeners.has(image)) this.#send({ op: 'opens', image, opens });
  }

  /** False: opens are to stay seen. */
  get unseenOpens(): boolean {
    return this.#options.unseenOpens === true;
  }

  /** Unmounts an image. One that is gone is success. */
  async unmount(image: string, mountPoint: string, detach: boolean): Promise<void> {
    if (this.#socket !== undefined) {
      await this.#ask({ op: 'unmount', image, detach });
      return;
    }
    // Its keeper has died, and so has the mount: nothing answers, and nothing is waited for.
    await native()
      .umount(mountPoint, MNT_DETACH)
      .catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'EINVAL' && error.code !== 'ENOENT') throw error;
      });
  }

  /** Counters of an image's mount, half a second old at most. */
  stats(image: string): SessionStats {
    return this.#listeners.get(image)?.stats ?? NO_STATS;
  }

  /** Lets go of the keeper; what is mounted stays. It ends where nothing is. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const { stop } of this.#listeners.values()) stop();
    if (this.#socket === undefined) return;
    // It refuses where something is mounted.
    await this.#ask({ op: 'end' }).catch((error: unknown) => {
      this.#options.log.debug({ err: error }, 'the keeper did not answer');
    });
    this.#socket?.destroy();
  }
}
