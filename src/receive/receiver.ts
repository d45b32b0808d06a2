// Opens images: from the store where they are there, from a delta server where not, and resolves as
// soon as the tree can be used. What does not live here: the transfer itself (transfer.ts).
//
// Opens of one image share one transfer and one template (SharedImage); a Receiver is one user's
// handle on them.
import { setTimeout as sleep } from 'node:timers/promises';
import type { Toc } from '../delta/toc.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { isLoopback } from '../image/registry-http.ts';
import type { Logger } from '../log/log.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { isDigest } from '../store/layout.ts';
import type { NativeTemplateFactory, Template } from '../tree/template.ts';
import { type BackoffBounds, backoffMs } from './backoff.ts';
import { DEFAULT_TIMEOUTS, type Timeouts } from './connections.ts';
import { type DeltaAnswer, DeltaClient } from './delta-client.ts';
import { findInBases, readHeader } from './header.ts';
import type { Progress } from './progress.ts';
import { completeImages } from './replan.ts';
import { type OpenContext, SharedImage } from './shared-image.ts';
import { WorkerToken } from './worker-token.ts';

/** What is to be opened, and how. */
export interface ReceiverOptions {
  /** URL of the delta server; undefined: only what the store has. */
  server: string | undefined;
  /** NAME:TAG or `sha256:...`. */
  ref: string;
  /** os/arch[/variant]. */
  platform: string;
  /** File with the token for the server, from now on; undefined: as before. */
  tokenFile?: string | undefined;
  /** Names or digests of images in the store to take contents from; undefined: every complete one. */
  bases?: string[] | undefined;
  log: Logger;
  signal?: AbortSignal | undefined;
  timeouts?: Timeouts | undefined;
  backoff?: BackoffBounds | undefined;
  /** Makes the native part of the template; the real one unless a test watches. */
  makeTemplate?: NativeTemplateFactory | undefined;
}

/** How long a server may take to say what a name means when the store could do without it, in ms. */
const NAME_CHECK_MS = 3000;

/** Attempts to get a header over connections that break, before the opening fails. */
const HEADER_ATTEMPTS = 4;
/** There is nobody at the address: trying again at once would not help. */
const NOBODY = ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH'];
/** The store is being closed, and its connections with it. */
const CLOSED = ['UND_ERR_DESTROYED', 'UND_ERR_CLOSED'];
const CONNECT_TIMEOUT = 'UND_ERR_CONNECT_TIMEOUT';

/** One name for a server, however its URL is written. */
function nameOf(server: string): string {
  const { origin, pathname } = new URL(server);
  return origin + pathname.replace(/\/+$/, '');
}

/** What this process shares between opens of one store. */
class Shared {
  readonly images = new Map<string, Promise<SharedImage>>();
  /** Openings by reference that are under way, with the signal of who began them. */
  readonly openings = new Map<
    string,
    { image: Promise<SharedImage>; signal: AbortSignal | undefined }
  >();
  readonly clients = new Map<string, DeltaClient>();
  /** That a bundle comes over at once. */
  connections = 1;
  /** What is shown to each server, by its name: to no other than the one that it was given for. */
  readonly tokens = new Map<string, WorkerToken>();

  /** Has every client of a server, those at work too, show the token in a file. */
  useToken(server: string, path: string, log: Logger): void {
    const name = nameOf(server);
    if (this.tokens.get(name)?.path === path) return;
    this.tokens.set(name, new WorkerToken(path));
    const { protocol, host } = new URL(server);
    if (protocol === 'http:' && !isLoopback(host)) {
      log.warn({ server, path }, 'the token goes over the network unencrypted');
    }
  }

  client(server: string, timeouts: Timeouts): DeltaClient {
    const key = `${server} ${JSON.stringify(timeouts)}`;
    let client = this.clients.get(key);
    if (client === undefined) {
      const token = () => this.tokens.get(nameOf(server));
      client = new DeltaClient(server, timeouts, this.connections, token);
      this.clients.set(key, client);
    }
    return client;
  }
}

const SHARED = new WeakMap<LayerStore, Shared>();

function sharedOf(store: LayerStore): Shared {
  let shared = SHARED.get(store);
  if (shared === undefined) {
    const made = new Shared();
    shared = made;
    SHARED.set(store, made);
    store.onClose(async () => {
      for (const opening of made.images.values()) {
        // One that failed to open has nothing to stop.
        await (await opening.catch(() => undefined))?.shutDown();
      }
      for (const client of made.clients.values()) await client.close();
    });
  }
  return shared;
}

/** Has bundles for this store come over so many connections at once; call it before the first opening. */
export function useConnections(store: LayerStore, connections: number): void {
  sharedOf(store).connections = connections;
}

/** Has all that is asked of a server show the token in a file; it is read when it is needed. */
export function useTokenFile(store: LayerStore, server: string, path: string, log: Logger): void {
  sharedOf(store).useToken(server, path, log);
}

/** The client that transfers of this store from a server use: its connections are theirs. */
export function deltaClientOf(store: LayerStore, server: string): DeltaClient {
  return sharedOf(store).client(server, DEFAULT_TIMEOUTS);
}

/** One user's handle on an open image. */
export class Receiver {
  readonly #shared: SharedImage;
  #closing: Promise<void> | undefined;

  private constructor(shared: SharedImage) {
    this.#shared = shared;
  }

  /**
   * Opens an image; resolves when its tree is usable: header in, or image already in the store.
   * @throws FirstlightError 'not-found', 'platform', 'unreachable', 'timeout', 'unauthorized',
   * 'corrupt', 'no-space' and others, each with what to do
   */
  static async open(store: LayerStore, options: ReceiverOptions): Promise<Receiver> {
    const shared = sharedOf(store);
    const key = [options.server, options.ref, options.platform, ...(options.bases ?? ['*'])].join(
      ' ',
    );
    for (;;) {
      const present = shared.openings.get(key);
      const opening = present ?? begin(store, shared, options, key);
      let image: SharedImage;
      try {
        image = await opening.image;
      } catch (error) {
        // Whoever began it has gone, and this one has not: it begins anew.
        const left = present?.signal?.aborted === true && options.signal?.aborted !== true;
        if (left) continue;
        throw error;
      }
      // Its last user may have closed it between the two lines.
      if (image.closed !== undefined) continue;
      image.retain();
      return new Receiver(image);
    }
  }

  /** Manifest digest. */
  get digest(): string {
    return this.#shared.image.digest;
  }
  get manifest(): Buffer {
    return this.#shared.manifest;
  }
  get config(): Buffer {
    return this.#shared.config;
  }
  get toc(): Toc {
    return this.#shared.template.toc;
  }
  /** Valid until `close`; a mount retains it for itself. */
  get template(): Template {
    return this.#shared.template;
  }

  /** Resolves when all has arrived and is durable. */
  get complete(): Promise<void> {
    return this.#shared.transfer?.complete ?? Promise.resolve();
  }

  /** A copy of the present state. */
  progress(): Progress {
    return { ...this.#shared.progress };
  }

  /** A reader waits for parts of a content (numbers within it). Never throws, never blocks. */
  wanted(content: number, firstPart: number, lastPart: number): void {
    this.#shared.transfer?.wanted(content, firstPart, lastPart);
  }

  /** Gives the handle back. The last one of an image stops its transfer; what arrived stays. */
  close(): Promise<void> {
    this.#closing ??= this.#shared.release();
    return this.#closing;
  }
}

/** Begins an opening that others of the same key share. */
function begin(store: LayerStore, shared: Shared, options: ReceiverOptions, key: string) {
  const opening = { image: new Opening(store, shared, options).run(), signal: options.signal };
  shared.openings.set(key, opening);
  const forget = () => shared.openings.delete(key);
  opening.image.then(forget, forget);
  return opening;
}

/** True for what may be over at the next attempt: a broken connection, a stall, a restarting server. */
function isPassing(error: unknown): boolean {
  const { kind, cause } = toFirstlightError(error);
  const code = (cause as NodeJS.ErrnoException | undefined)?.code ?? '';
  if (kind === 'unreachable') return ![...NOBODY, ...CLOSED, CONNECT_TIMEOUT].includes(code);
  return kind === 'timeout';
}

/** One opening of a reference. */
class Opening {
  readonly #store: LayerStore;
  readonly #shared: Shared;
  readonly #options: ReceiverOptions;
  readonly #context: OpenContext;

  constructor(store: LayerStore, shared: Shared, options: ReceiverOptions) {
    this.#store = store;
    this.#shared = shared;
    this.#options = options;
    const { server, log, makeTemplate, backoff, tokenFile } = options;
    const timeouts = options.timeouts ?? DEFAULT_TIMEOUTS;
    // First: it says what is wrong with the URL.
    const client = server === undefined ? undefined : shared.client(server, timeouts);
    if (server !== undefined && tokenFile !== undefined) shared.useToken(server, tokenFile, log);
    this.#context = { store, log, client, requestedAt: Date.now(), makeTemplate, backoff };
  }

  async run(): Promise<SharedImage> {
    const { ref, platform } = this.#options;
    const known = this.#store.findImage(ref, platform);
    if (known !== undefined && (isDigest(ref) || (await this.#stillMeans(known.digest)))) {
      return this.#stored(known.digest);
    }
    const { client } = this.#context;
    if (client === undefined) {
      throw new FirstlightError('not-found', `the store has no image ${ref}`, {
        hint: 'name a server that has it with --server',
      });
    }
    return this.#fetch(client, this.#bases());
  }

  /** Asks the server whether the name still means this image; if it cannot say, the store's word counts. */
  async #stillMeans(digest: string): Promise<boolean> {
    const { ref, platform, signal, log } = this.#options;
    const { client } = this.#context;
    if (client === undefined) return true;
    try {
      const request = { image: ref, platform, bases: [digest], patches: true };
      return (await client.digestOf(request, NAME_CHECK_MS, signal)) === digest;
    } catch (error) {
      const failure = toFirstlightError(error);
      log.warn({ err: failure, ref, digest }, 'the server was not asked what the name means now');
      return true;
    }
  }

  /** The open image of a digest, opened from the store where it is not open yet. */
  async #stored(digest: string): Promise<SharedImage> {
    return this.#once(digest, async () => {
      const image = this.#store.findImage(digest);
      if (image === undefined) throw new FirstlightError('not-found', `the store has no ${digest}`);
      // Where no server is named, the one that the image came from.
      const client =
        this.#context.client ?? this.#shared.client(image.state.server, DEFAULT_TIMEOUTS);
      return SharedImage.stored({ ...this.#context, client }, image);
    });
  }

  /** Runs `open` for a digest unless it is open or being opened. */
  async #once(digest: string, open: () => Promise<SharedImage>): Promise<SharedImage> {
    const { images } = this.#shared;
    for (;;) {
      const present = images.get(digest);
      if (present === undefined) break;
      // An opening that failed has told its own caller; this one tries for itself.
      const image = await present.catch(() => undefined);
      if (image !== undefined && image.closed === undefined) {
        image.retry();
        return image;
      }
      // What is being closed must be quiet before the same files are opened again.
      await image?.closed;
      if (images.get(digest) === present) images.delete(digest);
    }
    const opening = open();
    images.set(digest, opening);
    const forget = () => {
      if (images.get(digest) === opening) images.delete(digest);
    };
    opening.then((image) => image.onClosed(forget), forget);
    return opening;
  }

  #bases(): string[] {
    const { bases } = this.#options;
    if (bases === undefined) return completeImages(this.#store);
    return bases.map((base) => {
      const image = this.#store.findImage(base);
      if (image !== undefined) return image.digest;
      throw new FirstlightError('not-found', `the store has no image ${base} to update from`, {
        hint: '"firstlight ls" lists what it has',
      });
    });
  }

  /** Asks for the bundle; without those bases that turn out to lack something. */
  async #fetch(client: DeltaClient, offered: string[]): Promise<SharedImage> {
    const { signal } = this.#options;
    let bases = offered;
    for (let failures = 0; ; ) {
      const abort = new AbortController();
      // The caller's signal ends the opening, not the transfer that others may share by then.
      const forward = () => abort.abort(signal?.reason);
      const detach = () => signal?.removeEventListener('abort', forward);
      signal?.addEventListener('abort', forward, { once: true });
      signal?.throwIfAborted();
      try {
        const answer = await this.#ask(client, bases, abort);
        const lacking = await this.#take(client, answer, abort, detach);
        if (!Array.isArray(lacking)) return lacking;
        this.#options.log.warn(
          { bases: lacking },
          'images of the store lack contents; not used as bases',
        );
        bases = bases.filter((base) => !lacking.includes(base));
        if (lacking.every((base) => !offered.includes(base))) bases = [];
        abort.abort();
      } catch (error) {
        abort.abort();
        if (signal?.aborted === true || !isPassing(error) || ++failures >= HEADER_ATTEMPTS)
          throw error;
        this.#options.log.warn({ err: error, failures }, 'the header did not arrive; trying again');
        // Whoever goes meanwhile is told at the next turn.
        await sleep(backoffMs(failures, this.#options.backoff), undefined, { signal }).catch(
          () => undefined,
        );
      } finally {
        detach();
      }
    }
  }

  #ask(client: DeltaClient, bases: string[], abort: AbortController): Promise<DeltaAnswer> {
    const { ref, platform } = this.#options;
    return client.delta({ image: ref, platform, bases, patches: true }, abort.signal);
  }

  /**
   * Opens what an answer brings, or names the bases that lack something.
   * @param detach  takes the caller's signal off `abort`, which is the transfer's from then on
   */
  async #take(
    client: DeltaClient,
    answer: DeltaAnswer,
    abort: AbortController,
    detach: () => void,
  ): Promise<SharedImage | string[]> {
    const { ref, platform, signal } = this.#options;
    const name = isDigest(ref) ? '' : ref;
    // One that is just being opened is not in the store yet; one that has been closed may have left it.
    const open = await this.#shared.images.get(answer.digest)?.catch(() => undefined);
    const isOpen = open !== undefined && open.closed === undefined;
    if (isOpen || this.#store.findImage(answer.digest) !== undefined) {
      abort.abort();
      return this.#named(await this.#stored(answer.digest), name);
    }
    const received = await readHeader(answer.body);
    if (received.header.imageDigest !== answer.digest) {
      throw new FirstlightError(
        'corrupt',
        `${client.server} announced ${answer.digest} and sent another image`,
      );
    }
    signal?.throwIfAborted();
    detach();
    const context = { ...this.#context, client };
    return this.#store.guard(async () => {
      const bases = await findInBases(this.#store, received.header);
      if (bases.lacking.length > 0) return bases.lacking;
      let mine = false;
      const image = await this.#once(answer.digest, () => {
        mine = true;
        return SharedImage.fresh(context, answer, received, bases, { name, platform }, abort);
      });
      if (mine) return image;
      // Another name of the same image was faster: its transfer serves both.
      abort.abort();
      return this.#named(image, name);
    });
  }

  #named(image: SharedImage, name: string): SharedImage {
    if (name !== '') this.#store.setName(name, this.#options.platform, image.image.digest);
    return image;
  }
}
