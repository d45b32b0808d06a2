// Where the tree of a lower layer of a lazy image comes from when something else turns out to stand on it:
// from an image of the delta server that ends with it, or else from the registry. What does not live here: the
// merging of layers (prefixes.ts), and who waits for it (snapshotter.ts).
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { parseReference, type Reference } from '../image/reference.ts';
import type { Logger } from '../log/log.ts';
import type { DeltaClient } from '../receive/delta-client.ts';
import type { Receiver } from '../receive/receiver.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { layerLabels } from './labels.ts';
import type { SnapshotMetrics } from './metrics.ts';
import { makePrefix } from './prefixes.ts';
import type { Snapshot } from './types.ts';

export interface LowerTreesOptions {
  store: LayerStore;
  /** The delta server; undefined where there is none. */
  client: Pick<DeltaClient, 'chains'> | undefined;
  /** os/arch[/variant] of this machine. */
  platform: string;
  /** Where registries' mirrors and certificates are looked for (hosts.toml). */
  hostsDirs: readonly string[];
  /** How long the delta server may take in all, ms. */
  prepareTimeoutMs: number;
  open(digest: string, signal: AbortSignal): Promise<Receiver>;
  release(receiver: Receiver): Promise<void>;
  metrics: SnapshotMetrics;
  log: Logger;
}

/**
 * Makes trees of lower layers; the image of the store that each is.
 * @returns a function of the snapshot, the number of layers in its tree, and what gives it up
 * @throws FirstlightError `not-found` where nobody knows the layer; of the registry; the signal's reason
 */
export function lowerTrees(options: LowerTreesOptions) {
  return async (snapshot: Snapshot, depth: number, signal: AbortSignal): Promise<string> => {
    const { store, platform, hostsDirs, metrics, log } = options;
    const chainId = snapshot.key.replace(/ on .*$/, '');
    let reason = 'no-server';
    if (options.client !== undefined) {
      try {
        const whole = await fromServer(options, options.client, chainId, signal);
        if (whole !== undefined) {
          metrics.lowerTrees.inc({ way: 'lazy', reason: '' });
          return whole;
        }
        reason = 'unknown-image';
      } catch (cause) {
        signal.throwIfAborted();
        const error = toFirstlightError(cause);
        reason = error.kind;
        log.warn({ chainId, reason }, `lower layers come from the registry: ${error.line}`);
      }
    }
    metrics.lowerTrees.inc({ way: 'ordinary', reason });
    const reference = referenceOf(snapshot, chainId);
    const registry = { store, platform, hostsDirs, signal, log };
    return makePrefix(registry, { reference, chainId, depth });
  };
}

/** Digest of an image of the server that ends with the layer, opened; undefined where there is none. */
async function fromServer(
  { open, release, prepareTimeoutMs }: LowerTreesOptions,
  client: Pick<DeltaClient, 'chains'>,
  chainId: string,
  signal: AbortSignal,
): Promise<string | undefined> {
  const bound = new AbortController();
  const both = AbortSignal.any([bound.signal, signal]);
  const late = Promise.withResolvers<never>();
  both.addEventListener('abort', () => late.reject(both.reason));
  const timer = setTimeout(() => {
    const seconds = prepareTimeoutMs / 1000;
    bound.abort(
      new FirstlightError('timeout', `the delta server did not answer within ${seconds} s`),
    );
  }, prepareTimeoutMs);
  const find = async () => {
    const images = await client.chains(chainId, prepareTimeoutMs, both);
    const whole = images.find(({ index, layers }) => index === layers.length - 1);
    if (whole === undefined) return undefined;
    // It is in the store from here on, whoever still waits for it.
    await release(await open(whole.digest, both));
    return whole.digest;
  };
  const finding = find();
  // Of one that loses the race nobody else hears.
  finding.catch(() => undefined);
  return Promise.race([finding, late.promise]).finally(() => clearTimeout(timer));
}

/**
 * Where a registry has the layer: in the image that was pulled, which may have another manifest than the delta
 * server's image of the same layers; where the pull said no name, in the server's own.
 * @throws FirstlightError `not-found`
 */
function referenceOf({ lazy, labels }: Snapshot, chainId: string): Reference {
  const pulled = layerLabels(labels);
  const ref = pulled?.ref ?? lazy?.ref ?? null;
  if (ref === null) {
    throw new FirstlightError('not-found', `nobody knows where layer ${chainId} comes from`, {
      hint: 'remove the images that have it, and pull them again',
    });
  }
  const reference = parseReference(ref);
  const digest = pulled?.ref == null ? lazy?.image : pulled.manifest;
  if (digest == null) return reference;
  const { tag: _, ...repository } = reference;
  return { ...repository, digest };
}
