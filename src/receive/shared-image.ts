// One image that is open in this process: its template, its transfer where it is not complete, and
// how many use it. What does not live here: which image a reference means (receiver.ts).
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { parsePreamble } from '../delta/bundle-decode.ts';
import { API } from '../delta/protocol.ts';
import type { Toc } from '../delta/toc.ts';
import { checkToc } from '../delta/toc-check.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { StoredImage } from '../store/image.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { type NativeTemplateFactory, Template } from '../tree/template.ts';
import { Arrivals } from './arrivals.ts';
import type { BackoffBounds } from './backoff.ts';
import type { DeltaAnswer, DeltaClient } from './delta-client.ts';
import { decodeStored, type FromBases, type ReceivedHeader } from './header.ts';
import { newProgress, type Progress } from './progress.ts';
import { Transfer } from './transfer.ts';

/** What opening needs besides the image. */
export interface OpenContext {
  store: LayerStore;
  log: Logger;
  /** Undefined where no server is known: then nothing can be fetched. */
  client: DeltaClient | undefined;
  requestedAt: number;
  makeTemplate?: NativeTemplateFactory | undefined;
  backoff?: BackoffBounds | undefined;
}

/** An open image. The last `close` stops what runs. */
export class SharedImage {
  readonly image: StoredImage;
  readonly template: Template;
  readonly manifest: Buffer;
  readonly config: Buffer;
  readonly progress: Progress;
  readonly #context: OpenContext;
  readonly #release: (() => void)[];
  #transfer: Transfer | undefined;
  #repairing: Promise<void> = Promise.resolve();
  #users = 0;
  #closed: Promise<void> | undefined;
  #afterClose: () => void = () => undefined;

  private constructor(
    context: OpenContext,
    image: StoredImage,
    template: Template,
    files: { manifest: Buffer; config: Buffer },
    progress: Progress,
    transfer: Transfer | undefined,
  ) {
    this.image = image;
    this.template = template;
    this.manifest = files.manifest;
    this.config = files.config;
    this.progress = progress;
    this.#transfer = transfer;
    this.#context = context;
    const { store } = context;
    this.#release = [
      store.use(image.digest),
      store.onDamage((hexes) => {
        this.#repairing = this.#repairing.then(() => this.#repair(new Set(hexes)));
        return this.#repairing;
      }),
    ];
  }

  /** What brings the image in; undefined where it was complete and is. */
  get transfer(): Transfer | undefined {
    return this.#transfer;
  }

  /** Contents of the store are gone: what this image used of them is fetched again. */
  async #repair(hexes: Set<string>): Promise<void> {
    if (this.#closed !== undefined) return;
    if (this.progress.state !== 'complete') return this.#transfer?.lose(hexes);
    const slots = await this.image.read('contents');
    let uses = false;
    for (let at = 0; at + 32 <= slots.length && !uses; at += 32) {
      uses = hexes.has(slots.toString('hex', at, at + 32));
    }
    if (!uses) return;
    await this.#transfer?.stop();
    const parts = await transferParts(
      this.#context,
      this.image,
      this.template,
      this.progress,
      true,
    );
    this.progress.state = 'receiving';
    this.#transfer = new Transfer({ ...parts, abort: new AbortController() });
    this.#transfer.start(undefined, { bundlePath: '', etag: '' });
  }

  /** Opens an image of the store. */
  static async stored(context: OpenContext, image: StoredImage): Promise<SharedImage> {
    // From the first look at its files, or it could be removed between two of them.
    const release = context.store.use(image.digest);
    try {
      return await (image.complete ? openComplete : openIncomplete)(context, image);
    } finally {
      release();
    }
  }

  /**
   * Takes in a new image whose header has just come, and goes on with the rest of the answer.
   * Call it under the store's guard, in which `bases` were found.
   */
  static async fresh(
    context: OpenContext & { client: DeltaClient },
    answer: DeltaAnswer,
    received: ReceivedHeader,
    bases: FromBases,
    labels: { name: string; platform: string },
    abort: AbortController,
  ): Promise<SharedImage> {
    const { store, client } = context;
    const { header, raw } = received;
    const digests = Buffer.alloc(header.toc.contents * 32);
    for (const { content, digest } of bases.found) digest.copy(digests, content * 32);
    const { bundlePath, etag } = answer;
    const image = await store.registerImage({
      digest: header.imageDigest,
      manifest: header.manifest,
      config: header.config,
      toc: header.toc.bytes,
      contents: header.toc.contents,
      parts: header.toc.parts,
      digests,
      frames: raw,
      state: { version: 1, ...labels, server: client.server, bundlePath, etag, complete: false },
    });
    const progress = newProgress(context.requestedAt);
    progress.headerAt = received.arrivedAt;
    progress.headerBytes = raw.length;
    return withTransfer(context, image, header.toc, progress, abort, (transfer) =>
      transfer.start(header, { bundlePath, etag }, answer),
    );
  }

  static make(
    context: OpenContext,
    image: StoredImage,
    template: Template,
    files: { manifest: Buffer; config: Buffer },
    progress: Progress,
    transfer: Transfer | undefined,
  ): SharedImage {
    return new SharedImage(context, image, template, files, progress, transfer);
  }

  /** Begins again where the transfer has given contents up. */
  retry(): void {
    this.#transfer?.retry();
  }

  /** One more user. */
  retain(): void {
    this.#users++;
  }

  /** One user less; after the last, everything is stopped when it resolves. */
  async release(): Promise<void> {
    if (--this.#users === 0) await this.shutDown();
  }

  /** Stops everything, whoever still uses it: the store is being closed. Idempotent. */
  shutDown(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Set from the moment in which the last user goes; resolves when everything is stopped. */
  get closed(): Promise<void> | undefined {
    return this.#closed;
  }

  /** Calls `listener` when everything is stopped. */
  onClosed(listener: () => void): void {
    this.#afterClose = listener;
  }

  async #close(): Promise<void> {
    try {
      // Its own error went to whoever looked for damage.
      await this.#repairing.catch(() => undefined);
      await this.#transfer?.stop();
    } finally {
      this.template.release();
      for (const release of this.#release) release();
      this.#afterClose();
    }
  }
}

async function openComplete(context: OpenContext, image: StoredImage): Promise<SharedImage> {
  const [bytes, manifest, config] = await Promise.all([
    image.read('toc'),
    image.read('manifest.json'),
    image.read('config.json'),
  ]);
  const template = Template.open(context.store, image, checkToc(bytes), context.makeTemplate);
  const all = Uint32Array.from({ length: template.toc.contents }, (_, content) => content);
  template.markReady(all);
  const progress = newProgress(context.requestedAt);
  progress.state = 'complete';
  progress.headerAt = Date.now();
  return SharedImage.make(context, image, template, { manifest, config }, progress, undefined);
}

async function openIncomplete(context: OpenContext, image: StoredImage): Promise<SharedImage> {
  const raw = await image.read('frames');
  const progress = newProgress(context.requestedAt);
  const header = decodeStored(raw);
  progress.headerAt = Date.now();
  const { digest: id } = parsePreamble(raw.subarray(0, PREAMBLE_BYTES));
  // After a crash between the two files the state may name another bundle than these frames.
  const { bundlePath, etag } = image.state;
  const from =
    etag === `"${id}"`
      ? { bundlePath, etag }
      : { bundlePath: `${API.bundles}/${id}`, etag: `"${id}"` };
  return withTransfer(context, image, header.toc, progress, new AbortController(), (transfer) =>
    transfer.start(header, from),
  );
}

async function withTransfer(
  context: OpenContext,
  image: StoredImage,
  toc: Toc,
  progress: Progress,
  abort: AbortController,
  start: (transfer: Transfer) => void,
): Promise<SharedImage> {
  const template = Template.open(context.store, image, toc, context.makeTemplate);
  try {
    const [manifest, config] = await Promise.all([
      image.read('manifest.json'),
      image.read('config.json'),
    ]);
    const parts = await transferParts(context, image, template, progress, false);
    const transfer = new Transfer({ ...parts, abort });
    start(transfer);
    return SharedImage.make(context, image, template, { manifest, config }, progress, transfer);
  } catch (error) {
    template.release();
    throw error;
  }
}

async function transferParts(
  context: OpenContext,
  image: StoredImage,
  template: Template,
  progress: Progress,
  repair: boolean,
) {
  const { store, client, backoff } = context;
  if (client === undefined) throw new FirstlightError('internal', 'a transfer needs a server');
  const log = context.log.child({ image: image.digest.slice(0, 19) });
  const arrivals = await Arrivals.open(store, image, template, repair);
  return {
    ...{ store, image, template, arrivals, client, log, progress },
    ...(backoff === undefined ? {} : { backoff }),
  };
}
