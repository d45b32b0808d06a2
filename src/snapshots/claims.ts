// Whether a layer that containerd is about to pull comes lazily: finds the image that the layer belongs
// to, opens it at the delta server, and remembers what came of it for the layers that follow. All of it
// within a bound, since the pull waits; whatever the answer is, it has a reason. What does not live here:
// records and mounts.
//
// How the image is found, by what the pull says:
// - its manifest's digest (annotations are on): it is opened at once, one round trip to the server;
// - nothing but the chain id: the server is asked which images have such a layer. A layer that ends an
//   image names it. A layer below is taken as coming lazily without anything being fetched, and its own
//   tree is made if something else turns out to stand on it (prefixes.ts).
// In both cases the chain id must be one of those that follow from the image's own config. Where the pull says
// its layers, an image under another manifest is meant only if it has exactly these and no more: an image that
// merely begins with them is another one.

import type { ChainImage } from '../delta/protocol.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { type ImageLayers, layersOf } from '../image/chain.ts';
import { parsePlatform, platformDistance } from '../image/platform.ts';
import { formatReference, parseReference } from '../image/reference.ts';
import type { Logger } from '../log/log.ts';
import type { Receiver } from '../receive/receiver.ts';
import type { LayerLabels } from './labels.ts';
import type { LazyLayer, Usage } from './types.ts';

/** What was decided for one pull is remembered so long: its next layers follow within it. */
const REMEMBER_MS = 600_000;
/** A server that could not be reached is not asked again so long, or each layer would wait for it. */
const UNREACHABLE_MS = 5000;
/** An image that the server does not have is asked for again after this time: somebody may add it. */
const UNKNOWN_MS = 5000;
/** Pulls that are remembered. */
const REMEMBERED_MAX = 256;

/** Why a layer is pulled in the ordinary way; the label of a metric, and words for people. */
export interface Fallback {
  reason: 'no-server' | 'unknown-image' | 'unreachable' | 'timeout' | 'other-layers' | 'failed';
  text: string;
}

/** A layer that comes lazily. */
export interface LazyClaim {
  lazy: LazyLayer;
  usage: Usage;
  /** Bytes that an ordinary pull of the whole image would download; 0 where it is not the last layer. */
  imageBytes: number;
}

export type Verdict = { claim: LazyClaim } | { fallback: Fallback };

export interface ClaimsOptions {
  /** Opens an image at the server by digest. */
  open(digest: string, signal: AbortSignal): Promise<Receiver>;
  /** Takes an image that was opened, until something is mounted from it. */
  keep(receiver: Receiver): void;
  /** Gives one back that is of no use. */
  release(receiver: Receiver): Promise<void>;
  /** Asks the server for images by chain id; undefined where no server is configured. */
  chains: ((chainId: string, timeoutMs: number) => Promise<ChainImage[]>) | undefined;
  /** Rejects where the server gives no sign of life at all. */
  ping(timeoutMs: number): Promise<void>;
  /** os/arch[/variant] of this machine. */
  platform: string;
  /** Bound of one decision, ms. */
  timeoutMs: number;
  log: Logger;
}

/** An image that a pull turned out to be of. */
interface Opened {
  digest: string;
  ref: string | null;
  layers: ImageLayers;
  usage: Usage;
}

/** How long one decision may take. */
interface Bound {
  /** Aborted when it is over. */
  signal: AbortSignal;
  /** ms since 1970. */
  until: number;
}

interface Remembered {
  until: number;
  opened?: Opened;
  fallback?: Fallback;
}

/** The name by which the server would know a reference; undefined where it has none. */
function shortName(ref: string | null): string | undefined {
  if (ref === null) return undefined;
  try {
    const parsed = parseReference(ref);
    const { digest: _, ...named } = parsed;
    return formatReference(named).replace(/^docker\.io\/(library\/(?=[^/]+$))?/, '');
  } catch {
    // A client may call images as it likes; then the name does not help.
    return undefined;
  }
}

/** What a pull is remembered by: by its manifest, or by its name and last layer. */
function pullOf({ manifest, ref, upwards }: LayerLabels): string | undefined {
  return manifest ?? (ref === null ? undefined : `${ref} ${upwards.at(-1) ?? ''}`);
}

/** True where layers from one on are all those that the pull will ask for, as far as it says any. */
function areLayersOf({ upwards, isWhole }: LayerLabels, layers: string[], index: number): boolean {
  if (upwards.length === 0) return true;
  return (
    isWhole &&
    upwards.length === layers.length - index &&
    upwards.every((digest, i) => layers[index + i] === digest)
  );
}

/** True where nobody answers at the server's address, whatever is asked for. */
function isServerGone(error: FirstlightError): boolean {
  // An answer with an error in it has no cause: then the server is there.
  return error.kind === 'unreachable' && error.cause !== undefined;
}

export class Claims {
  readonly #options: ClaimsOptions;
  readonly #remembered = new Map<string, Remembered>();
  readonly #opening = new Map<string, Promise<Remembered>>();
  #unreachable: { until: number; fallback: Fallback } | undefined;
  #pinging: Promise<void> | undefined;

  constructor(options: ClaimsOptions) {
    this.#options = options;
  }

  /** Decides about one layer. Never rejects. */
  async claim(labels: LayerLabels): Promise<Verdict> {
    if (this.#options.chains === undefined) {
      return { fallback: { reason: 'no-server', text: 'no delta server is configured' } };
    }
    const late = Promise.withResolvers<Verdict>();
    const { timeoutMs } = this.#options;
    const abort = new AbortController();
    const timer = setTimeout(() => {
      const error = this.#lateError();
      abort.abort(error);
      late.resolve({ fallback: this.#explain(error, labels) });
    }, timeoutMs);
    try {
      const bound = { signal: abort.signal, until: Date.now() + timeoutMs };
      return await Promise.race([this.#decide(labels, bound), late.promise]);
    } finally {
      clearTimeout(timer);
    }
  }

  #lateError(): FirstlightError {
    const seconds = this.#options.timeoutMs / 1000;
    return new FirstlightError('timeout', `the delta server did not answer within ${seconds} s`);
  }

  async #decide(labels: LayerLabels, bound: Bound): Promise<Verdict> {
    const { manifest, chainId } = labels;
    const pull = pullOf(labels);
    const known = pull === undefined ? undefined : this.#recall(pull);
    if (known !== undefined) return this.#verdict(known, labels);
    if (this.#unreachable !== undefined && this.#unreachable.until > Date.now()) {
      return { fallback: this.#unreachable.fallback };
    }
    try {
      if (manifest !== null && pull !== undefined) {
        const found = await this.#openOnce(pull, manifest, labels.ref, labels.chainId, bound);
        if (found.opened !== undefined) return this.#verdict(found, labels);
      }
      return await this.#byChain(chainId, pull, labels, bound);
    } catch (error) {
      return { fallback: this.#explain(error, labels) };
    }
  }

  #recall(pull: string): Remembered | undefined {
    const known = this.#remembered.get(pull);
    if (known === undefined || known.until > Date.now()) return known;
    this.#remembered.delete(pull);
    return undefined;
  }

  #remember(pull: string, what: Omit<Remembered, 'until'>, ms: number): Remembered {
    const remembered = { ...what, until: Date.now() + ms };
    this.#remembered.delete(pull);
    this.#remembered.set(pull, remembered);
    if (this.#remembered.size > REMEMBERED_MAX) {
      const [oldest] = this.#remembered.keys();
      if (oldest !== undefined) this.#remembered.delete(oldest);
    }
    return remembered;
  }

  #noteUnreachable(fallback: Fallback): Fallback {
    this.#unreachable = { until: Date.now() + UNREACHABLE_MS, fallback };
    return fallback;
  }

  /**
   * An answer about one image did not come in time: its bundle may be being computed, and other images are
   * asked for all the same, unless the server turns out to be deaf to everything.
   */
  #noteLate(labels: LayerLabels, fallback: Fallback): Fallback {
    const pull = pullOf(labels);
    const known = pull === undefined ? undefined : this.#recall(pull);
    if (pull !== undefined && known === undefined) {
      this.#remember(pull, { fallback }, UNREACHABLE_MS);
    }
    const { ping, timeoutMs, log } = this.#options;
    this.#pinging ??= ping(timeoutMs)
      .catch((error: unknown) => {
        log.warn({ err: toFirstlightError(error) }, 'the delta server gives no sign of life');
        this.#noteUnreachable(fallback);
      })
      .finally(() => {
        this.#pinging = undefined;
      });
    return fallback;
  }

  #explain(thrown: unknown, labels: LayerLabels): Fallback {
    const error = toFirstlightError(thrown);
    const { kind, line } = error;
    if (isServerGone(error)) return this.#noteUnreachable({ reason: 'unreachable', text: line });
    if (kind === 'timeout' || kind === 'unreachable') {
      return this.#noteLate(labels, { reason: kind, text: line });
    }
    if (kind === 'not-found' || kind === 'platform') {
      return { reason: 'unknown-image', text: 'the delta server does not have the image' };
    }
    return { reason: 'failed', text: line };
  }

  /** What is remembered of a pull says about this layer. */
  #verdict(known: Remembered, labels: LayerLabels): Verdict {
    const { opened, fallback } = known;
    if (opened === undefined) return { fallback: fallback! };
    const { digests, chainIds } = opened.layers;
    const index = chainIds.indexOf(labels.chainId);
    const isNamed = opened.digest === labels.manifest;
    if (index < 0 || !(isNamed || areLayersOf(labels, digests, index))) {
      const text = `image ${opened.digest} of the delta server has other layers`;
      return { fallback: { reason: 'other-layers', text } };
    }
    const top = index === chainIds.length - 1;
    // The pull's name for it, where it is the whole image that agrees.
    const isSame = isNamed || top || labels.upwards.length > 0;
    const lazy: LazyLayer = {
      image: opened.digest,
      ref: (isSame ? labels.ref : null) ?? opened.ref,
      layerDigest: labels.layerDigest ?? digests[index] ?? null,
      tree: top ? opened.digest : null,
    };
    const usage = top ? opened.usage : { bytes: 0, inodes: 0 };
    return { claim: { lazy, usage, imageBytes: top ? opened.layers.bytes : 0 } };
  }

  /** Opens an image for a pull; layers that ask at the same time share it. */
  #openOnce(
    pull: string,
    digest: string,
    ref: string | null,
    chainId: string,
    bound: Bound,
  ): Promise<Remembered> {
    const present = this.#opening.get(pull);
    if (present !== undefined) return present;
    const opening = this.#open(pull, digest, ref, chainId, bound);
    this.#opening.set(pull, opening);
    const forget = () => this.#opening.delete(pull);
    opening.then(forget, forget);
    return opening;
  }

  async #open(
    pull: string,
    digest: string,
    ref: string | null,
    chainId: string,
    bound: Bound,
  ): Promise<Remembered> {
    const { signal } = bound;
    let receiver: Receiver;
    try {
      receiver = await this.#options.open(digest, signal);
    } catch (error) {
      signal.throwIfAborted();
      const { kind } = toFirstlightError(error);
      if (kind !== 'not-found') throw error;
      const text = 'the delta server does not have the image';
      // Not remembered: it may have the same layers under another manifest.
      return { until: 0, fallback: { reason: 'unknown-image', text } };
    }
    const { toc, manifest, config } = receiver;
    let layers: ImageLayers;
    try {
      // It came too late: the pull has gone its ordinary way.
      signal.throwIfAborted();
      layers = layersOf(manifest, config);
    } catch (error) {
      await this.#options.release(receiver);
      throw error;
    }
    const usage = { bytes: toc.totalBytes, inodes: toc.rows };
    const opened = { digest: receiver.digest, ref, layers, usage };
    if (layers.chainIds.includes(chainId)) this.#options.keep(receiver);
    else await this.#options.release(receiver);
    return this.#remember(pull, { opened }, REMEMBER_MS);
  }

  /** Finds the image by its layer alone. */
  async #byChain(
    chainId: string,
    pull: string | undefined,
    labels: LayerLabels,
    bound: Bound,
  ): Promise<Verdict> {
    const { chains } = this.#options;
    if (chains === undefined) throw new FirstlightError('internal', 'no server to ask');
    const left = Math.max(1, bound.until - Date.now());
    const image = this.#choose(await chains(chainId, left), labels);
    if (image === undefined) {
      const text = 'the delta server does not have the image';
      const fallback: Fallback = { reason: 'unknown-image', text };
      if (pull !== undefined) this.#remember(pull, { fallback }, UNKNOWN_MS);
      return { fallback };
    }
    const last = image.index === image.layers.length - 1;
    // Which of several images it will be shows with the last layer, or by what the pull says.
    if (last || pull !== undefined) {
      const name = pull ?? image.digest;
      const known = this.#recall(name);
      const { digest, name: ref = null } = image;
      const opened = known ?? (await this.#openOnce(name, digest, ref, labels.chainId, bound));
      return this.#verdict(opened, labels);
    }
    const lazy: LazyLayer = {
      image: image.digest,
      ref: image.name ?? null,
      layerDigest: image.layers[image.index] ?? null,
      tree: null,
    };
    return { claim: { lazy, usage: { bytes: 0, inodes: 0 }, imageBytes: 0 } };
  }

  /** The image among several with the same layer that the pull can mean. */
  #choose(images: ChainImage[], labels: LayerLabels): ChainImage | undefined {
    const wanted = parsePlatform(this.#options.platform);
    const name = shortName(labels.ref);
    const fitting = images.filter(({ platform, layers, index }) => {
      if (platformDistance(wanted, parsePlatform(platform)) === undefined) return false;
      return areLayersOf(labels, layers, index);
    });
    return fitting.find((image) => image.name === name) ?? fitting[0];
  }
}
