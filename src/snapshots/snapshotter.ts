// containerd's snapshotter: what each call means. Records, directories, images that come lazily and the
// decision about them are put together here; none of their details stand here, nor does gRPC (service.ts).
//
// A key is all that names a snapshot, whatever namespace the request is in. containerd's metadata store puts
// the namespace and a number of its own in front of every name (`k8s.io/12/...`), its collection asks without
// a namespace, and 1.6 never says one: so the namespace in a request is kept for people, not for looking up.
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { native } from '../native/index.ts';
import type { LayerStore } from '../store/layer-store.ts';
import type { Claims, Fallback, LazyClaim } from './claims.ts';
import type { Directories, Ownership } from './directories.ts';
import { parseFilters } from './filter.ts';
import { checkLabels, layerLabels, namespaceOf } from './labels.ts';
import type { SnapshotMetrics } from './metrics.ts';
import type { Records } from './records.ts';
import type { Trees } from './trees.ts';
import { KIND, type Labels, type Mount, type Snapshot, type Usage } from './types.ts';
import { diskUsage } from './usage.ts';

export interface SnapshotterParts {
  records: Records;
  directories: Directories;
  trees: Trees;
  claims: Claims;
  store: LayerStore;
  metrics: SnapshotMetrics;
  /** Makes the tree of a lower layer of a lazy image, and says which image of the store it is. */
  makeTree(snapshot: Snapshot, depth: number, signal: AbortSignal): Promise<string>;
  log: Logger;
}

/** What Prepare and View ask for. */
export interface NewRequest {
  key: string;
  parent: string;
  labels: Labels;
  /** From the request's header; empty where it has none. */
  namespace: string;
  /** Aborted when the caller waits no longer. */
  gone: AbortSignal;
}

/** The tree of a lower layer that is being made. */
interface MakingTree {
  tree: Promise<string>;
  /** Calls that wait for it; with the last one it is given up. */
  waiting: number;
  abort: AbortController;
}

/** What a new snapshot stands on. */
interface Ground {
  /** Directories, the uppermost first. */
  lowers: string[];
  /** What the root of the tree shows; undefined where there is nothing below. */
  root: Ownership | undefined;
  release(): void;
}

function needed(value: string, what: string): string {
  if (value !== '') return value;
  throw new FirstlightError('usage', `the request names no ${what}`);
}

/**
 * containerd unpacks layers side by side, each on nothing, and says their parents with the commit, where the
 * configuration says that the snapshotter can `rebase`. What is unpacked on nothing keeps no mark of what it removes
 * from the layers below: those files would come back.
 */
function rebased({ key, parent: present }: Snapshot, parent: string): FirstlightError {
  const now = present === '' ? 'none' : present;
  return new FirstlightError(
    // Not `unsupported`: of that containerd tells its caller nothing but that it is.
    'usage',
    `snapshot ${key} cannot be committed on ${parent}: it was prepared on ${now}`,
    { hint: "leave rebase out of the proxy plugin's capabilities in containerd's configuration" },
  );
}

/** How a layer's tar says that a name is removed (OCI image layer specification). */
const WHITEOUT = Buffer.from('.wh.');

/**
 * Whoever unpacks a layer with such a name in it removes another file instead. Unpacked layers hold none:
 * containerd has turned them into overlayfs' own marks.
 */
function checkName(name: Buffer): void {
  if (!name.subarray(0, WHITEOUT.length).equals(WHITEOUT)) return;
  const shown = name.toString('utf8');
  throw new FirstlightError(
    'usage',
    `a file called ${shown} cannot be in a layer: there the name means that another one is removed`,
    { hint: 'rename or remove it before the commit' },
  );
}

export class Snapshotter {
  readonly #p: SnapshotterParts;
  /** Trees of lower layers that are being made, by snapshot. */
  readonly #makingTrees = new Map<number, MakingTree>();

  constructor(parts: SnapshotterParts) {
    this.#p = parts;
  }

  /** Makes the disk agree with the records after whatever ended the last process; says what it did. */
  async recover(): Promise<void> {
    const { records, directories, store, log } = this.#p;
    const snapshots = await records.call('list');
    const removed = await directories.clean(() => this.#ids());
    if (removed > 0) log.info({ removed }, 'directories of unfinished snapshots were removed');
    const present = await directories.present();
    for (const { id, key, lazy } of snapshots) {
      if (lazy !== null || present.has(id)) continue;
      const advice = 'remove it, or the image, and pull again';
      log.error({ key, id }, `the directory of a snapshot is gone: ${advice}`);
    }
    const used = new Set(
      snapshots.flatMap(({ lazy }) => (lazy === null ? [] : [lazy.image, lazy.tree ?? lazy.image])),
    );
    for (const { digest, pinned } of store.images()) {
      if (pinned !== used.has(digest)) store.setPinned(digest, used.has(digest));
    }
  }

  async #ids(): Promise<Set<number>> {
    return new Set((await this.#p.records.call('list')).map(({ id }) => id));
  }

  /** Images that snapshots stand on and that have not all arrived. */
  async unfinished(): Promise<string[]> {
    const snapshots = await this.#p.records.call('list');
    const trees = new Set(snapshots.flatMap(({ lazy }) => lazy?.tree ?? []));
    return [...trees].filter((digest) => this.#p.store.findImage(digest)?.complete !== true);
  }

  /**
   * A snapshot to write to. One that a pull is about to unpack a layer into may turn out not to be needed.
   * @throws FirstlightError `exists` where the layer comes lazily (its committed snapshot is there then) or the key
   *   is taken; `not-found` for the parent; `usage` for one that is not committed
   */
  async prepare(request: NewRequest): Promise<Mount[]> {
    checkLabels(request.labels);
    const layer = layerLabels(request.labels);
    let fallback: Fallback | undefined;
    if (layer !== undefined) {
      const verdict = await this.#p.claims.claim(layer);
      if ('claim' in verdict) {
        const name = await this.#commitLazy(layer.chainId, request, verdict.claim);
        throw new FirstlightError('exists', `snapshot ${name} comes lazily`);
      }
      ({ fallback } = verdict);
      this.#tellFallback(request, layer.ref, fallback);
    }
    return this.#create(request, KIND.Active, fallback?.text ?? null);
  }

  #tellFallback({ key }: NewRequest, ref: string | null, { reason, text }: Fallback): void {
    const { log, metrics } = this.#p;
    metrics.pulls.inc({ way: 'ordinary', reason });
    // Whoever runs no delta server knows that.
    const level = reason === 'no-server' ? 'debug' : 'warn';
    log[level]({ key, image: ref, reason }, `a layer is pulled in the ordinary way: ${text}`);
  }

  /** Commits a layer that comes lazily; the name of its snapshot. */
  async #commitLazy(chainId: string, request: NewRequest, claim: LazyClaim): Promise<string> {
    const { records, store, metrics, log } = this.#p;
    const { parent, labels } = request;
    const namespace = request.namespace || namespaceOf(request.key);
    // Two pulls of one image share the snapshot. A layer that stands on another parent's directory, though its chain
    // is the same, is a snapshot of its own: containerd looks for parent and chain.
    for (const name of [chainId, `${chainId} on ${parent}`]) {
      try {
        const fields = { name, namespace, parent, labels, lazy: claim.lazy, usage: claim.usage };
        await records.call('createLazy', fields);
      } catch (error) {
        if (toFirstlightError(error).kind !== 'exists') throw error;
        const there = await records.call('stat', name);
        if (there.kind !== KIND.Committed || there.parent !== parent) continue;
      }
      const { image, tree, ref } = claim.lazy;
      if (tree !== null && store.findImage(tree) !== undefined) store.setPinned(tree, true);
      metrics.pulls.inc({ way: 'lazy', reason: '' });
      log.info({ name, image, ref, last: tree !== null }, 'a layer comes lazily');
      return name;
    }
    throw new FirstlightError('busy', `the snapshot ${chainId} is of another kind`);
  }

  /** A snapshot to read. @throws FirstlightError as `prepare` */
  async view(request: NewRequest): Promise<Mount[]> {
    checkLabels(request.labels);
    return this.#create(request, KIND.View, null);
  }

  async #create(
    request: NewRequest,
    kind: typeof KIND.Active | typeof KIND.View,
    fallback: string | null,
  ): Promise<Mount[]> {
    const { records, directories } = this.#p;
    const { parent, labels } = request;
    const key = needed(request.key, 'key');
    const chain = parent === '' ? [] : await this.#parents(parent);
    const ground = await this.#ground(chain, request.gone);
    let aside: string | undefined;
    try {
      aside = await directories.make(ground.root, kind === KIND.Active);
      // Nobody would know of it.
      request.gone.throwIfAborted();
      const namespace = request.namespace || namespaceOf(key);
      const made = { key, namespace, parent, kind, labels, fallback, aside };
      const [snapshot] = await records.call('create', made);
      return directories.mounts(snapshot!, ground.lowers);
    } finally {
      if (aside !== undefined) await directories.made(aside);
      ground.release();
    }
  }

  async #parents(parent: string): Promise<Snapshot[]> {
    const chain = await this.#p.records.call('chain', parent);
    if (chain[0]?.kind !== KIND.Committed) {
      throw new FirstlightError('usage', `parent ${parent} is not a committed snapshot`);
    }
    return chain;
  }

  /** The directories that a snapshot stands on; an image that comes lazily is mounted for it. */
  async #ground(chain: Snapshot[], gone: AbortSignal): Promise<Ground> {
    const { directories, trees } = this.#p;
    const lowers: string[] = [];
    let root: Ownership | undefined;
    for (const [at, snapshot] of chain.entries()) {
      if (snapshot.lazy !== null) {
        const tree = snapshot.lazy.tree ?? (await this.#treeOf(snapshot, chain.length - at, gone));
        const held = await trees.hold(tree);
        return { lowers: [...lowers, held.path], root: root ?? held.root, release: held.release };
      }
      root ??= await directories.ownership(snapshot.id);
      lowers.push(directories.layer(snapshot.id));
    }
    return { lowers, root, release: () => undefined };
  }

  /**
   * Makes the tree of a lower layer of a lazy image, once for all calls that wait for it.
   * @param depth  layers in it
   */
  async #treeOf(snapshot: Snapshot, depth: number, gone: AbortSignal): Promise<string> {
    const making = this.#makingTrees.get(snapshot.id) ?? this.#beginTree(snapshot, depth);
    making.waiting++;
    const leave = () => {
      making.waiting--;
      if (making.waiting > 0) return;
      // The next call begins anew.
      this.#makingTrees.delete(snapshot.id);
      making.abort.abort(gone.reason);
    };
    gone.addEventListener('abort', leave, { once: true });
    if (gone.aborted) leave();
    try {
      return await making.tree;
    } finally {
      gone.removeEventListener('abort', leave);
    }
  }

  #beginTree(snapshot: Snapshot, depth: number): MakingTree {
    const abort = new AbortController();
    const making = { tree: this.#makeTree(snapshot, depth, abort.signal), waiting: 0, abort };
    this.#makingTrees.set(snapshot.id, making);
    const forget = () => {
      if (this.#makingTrees.get(snapshot.id) === making) this.#makingTrees.delete(snapshot.id);
    };
    making.tree.then(forget, forget);
    return making;
  }

  async #makeTree(snapshot: Snapshot, depth: number, signal: AbortSignal): Promise<string> {
    const { records, store, makeTree } = this.#p;
    const tree = await makeTree(snapshot, depth, signal);
    await records.call('setTree', snapshot.id, tree);
    if (store.findImage(tree) !== undefined) store.setPinned(tree, true);
    return tree;
  }

  /** @throws FirstlightError `not-found`; `busy` where it is committed */
  async mounts(key: string, gone: AbortSignal): Promise<Mount[]> {
    const [snapshot, ...parents] = await this.#p.records.call('chain', needed(key, 'key'));
    if (snapshot!.kind === KIND.Committed) {
      throw new FirstlightError('busy', `snapshot ${key} is committed and has no mounts`);
    }
    const ground = await this.#ground(parents, gone);
    ground.release();
    return this.#p.directories.mounts(snapshot!, ground.lowers);
  }

  /**
   * @param parent  empty for the one that it was prepared on
   * @throws FirstlightError `not-found`, `exists`, `busy` where it is not active; `usage` for a name in it that a layer
   *   cannot hold, and for another parent
   */
  async commit(name: string, key: string, labels: Labels, parent = ''): Promise<void> {
    const { records, directories } = this.#p;
    needed(name, 'name');
    checkLabels(labels);
    const snapshot = await records.call('stat', needed(key, 'key'));
    if (parent !== '' && parent !== snapshot.parent) throw rebased(snapshot, parent);
    const layer = directories.layer(snapshot.id);
    const active = snapshot.kind === KIND.Active;
    const usage = active ? await diskUsage(layer, checkName) : { bytes: 0, inodes: 0 };
    // What is committed is there after a loss of power: its name must not outlive its files.
    if (active) await native().syncfs(layer);
    const given = Object.keys(labels).length > 0 ? labels : undefined;
    await records.call('commit', key, name, given, usage);
  }

  /** @throws FirstlightError `not-found`; `busy` where others stand on it */
  async remove(key: string): Promise<void> {
    const { records, directories, trees, store, log } = this.#p;
    const below = await this.#lazyBelow(needed(key, 'key'));
    const { id, unused } = await records.call('remove', key);
    await directories.remove(id).catch((error: unknown) => {
      // It is removed all the same; Cleanup and the next start look for such remains.
      log.warn({ err: error, key }, 'the directory of a removed snapshot is not all gone');
    });
    if (below !== undefined) await trees.dropUnused(below, false);
    for (const digest of unused) {
      await trees.dropUnused(digest, true);
      if (store.findImage(digest) !== undefined) store.setPinned(digest, false);
    }
  }

  /** Image that a snapshot which can be mounted stands on. */
  async #lazyBelow(key: string): Promise<string | undefined> {
    const chain = await this.#p.records.call('chain', key);
    if (chain[0]?.kind === KIND.Committed) return undefined;
    return chain.find(({ lazy }) => lazy !== null)?.lazy?.tree ?? undefined;
  }

  stat(key: string): Promise<Snapshot> {
    return this.#p.records.call('stat', needed(key, 'key'));
  }

  /**
   * Changes labels.
   * @param paths  `labels` or `labels.NAME`; none for all that can be changed
   * @throws FirstlightError `not-found`; `usage` for a field that cannot be changed
   */
  async update(key: string, labels: Labels, paths: string[]): Promise<Snapshot> {
    needed(key, 'name');
    checkLabels(labels);
    const set: Record<string, string | undefined> = {};
    let all = paths.length === 0;
    for (const path of paths) {
      if (path === 'labels') all = true;
      else if (path.startsWith('labels.')) {
        const name = path.slice('labels.'.length);
        set[name] = labels[name];
      } else {
        throw new FirstlightError('usage', `field ${path} of a snapshot cannot be changed`);
      }
    }
    return this.#p.records.call('setLabels', key, all ? { replace: labels } : { set });
  }

  async list(filters: string[]): Promise<Snapshot[]> {
    const match = parseFilters(filters);
    return (await this.#p.records.call('list')).filter(match);
  }

  async usage(key: string): Promise<Usage> {
    const snapshot = await this.stat(key);
    if (snapshot.kind !== KIND.Active) return snapshot.usage;
    return diskUsage(this.#p.directories.layer(snapshot.id));
  }

  /** Removes directories that no record names. */
  async cleanup(): Promise<void> {
    const { directories, log } = this.#p;
    const removed = await directories.clean(() => this.#ids());
    if (removed > 0) log.info({ removed }, 'directories of removed snapshots were cleared');
  }
}
