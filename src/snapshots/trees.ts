// Images as one read-only mount each, however many containers stand on them: mounted when the first
// needs it, unmounted when none does. What does not live here: which snapshots stand on which image
// (records), and how an image is chosen (claims.ts).
import { rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { native } from '../native/index.ts';
import type { Receiver } from '../receive/receiver.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { hexOf } from '../store/layout.ts';
import { MNT_DETACH, mountAt, readMounts, UMOUNT_NOFOLLOW } from '../store/mounts.ts';
import { FsInstance, type FsInstanceOptions } from '../tree/fs-instance.ts';
import type { Ownership } from './directories.ts';
import { WaitTimes } from './waits.ts';

/** An open image is kept for the snapshot that is about to stand on it, at most so long. */
const KEEP_MS = 120_000;
/** A mount that nothing stands on any more stays so long: a restarted container finds caches warm. */
const LINGER_MS = 30_000;
const PERMISSIONS = 0o7777;
/** An image that has left the store is asked for so long; the kubelet gives a container two minutes. */
const OPEN_MS = 30_000;

export interface TreesOptions {
  store: LayerStore;
  /** Directory of the mount points. */
  directory: string;
  /** Opens an image of the store, or of the server by its digest. */
  open(digest: string, signal?: AbortSignal): Promise<Receiver>;
  /** Gives one back; its transfer goes on. */
  release(receiver: Receiver): Promise<void>;
  /** Gives one back whose transfer nobody wants to go on. */
  close(receiver: Receiver): Promise<void>;
  /** What every mount has in common. */
  instance: Pick<FsInstanceOptions, 'makeSession' | 'waitTimeoutMs'>;
  /** How long an image that is not in the store is asked for, ms. */
  openTimeoutMs?: number;
  /** True where a snapshot that may be mounted stands on the image. */
  isUsed(digest: string): Promise<boolean>;
  /** Hears how long each wait for contents took. */
  onWaited(seconds: number): void;
  log: Logger;
}

/** One mounted image. */
interface Tree {
  receiver: Receiver;
  waits: WaitTimes;
  instance: FsInstance;
  path: string;
  /** ms since 1970. */
  mountedAt: number;
}

/** A moment of a mounted image. */
export interface TreeStatus {
  digest: string;
  path: string;
  instance: FsInstance;
  receiver: Receiver;
  mountedAt: number;
}

/** A mount that is held for as long as something is being built on it. */
export interface HeldTree {
  /** Where it is mounted. */
  path: string;
  /** What its root directory shows. */
  root: Ownership;
  release(): void;
}

/** True where an image stands at its mount point, by what the kernel says. */
async function isMounted(digest: string, path: string): Promise<boolean> {
  return mountAt(await readMounts(), path)?.source === digest;
}

export class Trees {
  readonly #options: TreesOptions;
  readonly #trees = new Map<string, Tree>();
  /** What is done to each image, one after the other. */
  readonly #queues = new Map<string, Promise<unknown>>();
  readonly #holds = new Map<string, number>();
  readonly #kept = new Map<string, { receiver: Receiver; timer: NodeJS.Timeout }>();
  readonly #lingering = new Map<string, NodeJS.Timeout>();
  #ending = false;

  constructor(options: TreesOptions) {
    this.#options = options;
  }

  #pathOf(digest: string): string {
    return join(this.#options.directory, hexOf(digest).slice(0, 24));
  }

  /** Runs work on an image when what was begun before on it is done. */
  #inTurn<T>(digest: string, work: () => Promise<T>): Promise<T> {
    const before = this.#queues.get(digest) ?? Promise.resolve();
    // Its own caller has heard of the error.
    const turn = before.catch(() => undefined).then(work);
    this.#queues.set(digest, turn);
    const forget = () => {
      if (this.#queues.get(digest) === turn) this.#queues.delete(digest);
    };
    turn.then(forget, forget);
    return turn;
  }

  /** Keeps an image that has just been opened, for the mount that will follow. */
  keep(receiver: Receiver): void {
    const { digest } = receiver;
    if (this.#kept.has(digest) || this.#trees.has(digest)) {
      this.#giveBack(receiver);
      return;
    }
    const timer = setTimeout(() => {
      this.#kept.delete(digest);
      this.#giveBack(receiver);
    }, KEEP_MS);
    timer.unref();
    this.#kept.set(digest, { receiver, timer });
  }

  #giveBack(receiver: Receiver): void {
    this.#options.release(receiver).catch((error: unknown) => {
      this.#options.log.warn({ err: error, image: receiver.digest }, 'an image was not given back');
    });
  }

  #takeKept(digest: string): Receiver | undefined {
    const kept = this.#kept.get(digest);
    if (kept === undefined) return undefined;
    clearTimeout(kept.timer);
    this.#kept.delete(digest);
    return kept.receiver;
  }

  /**
   * Mounts an image where it is not mounted yet, and keeps it so until `release`.
   * @throws FirstlightError of the opening or the mounting
   */
  async hold(digest: string): Promise<HeldTree> {
    if (this.#ending) throw new FirstlightError('unreachable', 'the daemon is ending');
    this.#holds.set(digest, (this.#holds.get(digest) ?? 0) + 1);
    let held = true;
    const release = () => {
      if (!held) return;
      held = false;
      const left = (this.#holds.get(digest) ?? 1) - 1;
      if (left === 0) this.#holds.delete(digest);
      else this.#holds.set(digest, left);
    };
    try {
      const tree = await this.#inTurn(digest, () => this.#mounted(digest));
      const { uid, gid, mode } = tree.receiver.template.root.attributes();
      return { path: tree.path, root: { uid, gid, mode: mode & PERMISSIONS }, release };
    } catch (error) {
      release();
      throw error;
    }
  }

  async #mounted(digest: string): Promise<Tree> {
    const timer = this.#lingering.get(digest);
    clearTimeout(timer);
    this.#lingering.delete(digest);
    const present = this.#trees.get(digest);
    if (present !== undefined) {
      if (await isMounted(digest, present.path)) return present;
      this.#options.log.error({ image: digest, path: present.path }, 'an image was unmounted');
      this.#trees.delete(digest);
      await this.#takeDown(digest, present);
    }
    const receiver = this.#takeKept(digest) ?? (await this.#open(digest));
    try {
      const tree = await this.#mount(digest, receiver);
      this.#trees.set(digest, tree);
      return tree;
    } catch (error) {
      await this.#options.release(receiver);
      throw error;
    }
  }

  async #open(digest: string): Promise<Receiver> {
    const { open, openTimeoutMs = OPEN_MS } = this.#options;
    const abort = new AbortController();
    const late = Promise.withResolvers<never>();
    const timer = setTimeout(() => {
      const text = `${digest} is not in the store, and the delta server did not answer in time`;
      const hint = 'see that the delta server runs, or remove the image and pull it again';
      const error = new FirstlightError('timeout', text, { hint });
      abort.abort(error);
      late.reject(error);
    }, openTimeoutMs);
    const opening = open(digest, abort.signal);
    try {
      return await Promise.race([opening, late.promise]);
    } catch (error) {
      // One that comes all the same is wanted by nobody.
      opening.then(
        (receiver) => this.#giveBack(receiver),
        () => undefined, // That is the error.
      );
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }

  async #mount(digest: string, receiver: Receiver): Promise<Tree> {
    const { instance: common, store, log } = this.#options;
    const path = this.#pathOf(digest);
    const waits = new WaitTimes(receiver.template, this.#options.onWaited);
    const instance = new FsInstance({
      ...common,
      id: `image-${hexOf(digest).slice(0, 24)}`,
      template: receiver.template,
      mountPoint: path,
      source: digest,
      rw: 'off',
      snapshots: store.layout.snapshots,
      wanted: (content, firstPart, lastPart) => {
        receiver.wanted(content, firstPart, lastPart);
        waits.wanted(content, firstPart, lastPart);
      },
      onEnded: (error) => this.#lost(digest, error),
      log,
    });
    try {
      await instance.start();
    } catch (error) {
      waits.stop();
      throw error;
    }
    log.info({ image: digest, path }, 'image mounted');
    return { receiver, waits, instance, path, mountedAt: Date.now() };
  }

  /** Somebody has unmounted it, or its session died: the next container gets a new mount. */
  #lost(digest: string, error: string | undefined): void {
    const tree = this.#trees.get(digest);
    if (tree === undefined) return;
    this.#options.log.error({ image: digest, path: tree.path, error }, 'an image was unmounted');
    this.#trees.delete(digest);
    void this.#inTurn(digest, () => this.#takeDown(digest, tree)).catch((cause: unknown) => {
      this.#options.log.error({ err: cause, image: digest }, 'its remains could not be cleared');
    });
  }

  async #takeDown(digest: string, tree: Tree): Promise<void> {
    // Containers that still have it as their lower layer keep the session alive; so it is never
    // detached by force, which would end what they wait for.
    await tree.instance.teardown();
    tree.waits.stop();
    await this.#options.release(tree.receiver);
    await rmdir(tree.path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error;
    });
    this.#options.log.info({ image: digest }, 'image unmounted');
  }

  /**
   * A snapshot has gone that stood on an image: unmounts it when nothing else does, after a while.
   * @param now  the image itself is being removed
   */
  async dropUnused(digest: string, now: boolean): Promise<void> {
    clearTimeout(this.#lingering.get(digest));
    if (now) {
      await this.#unmountUnused(digest);
      return;
    }
    const timer = setTimeout(() => {
      this.#lingering.delete(digest);
      this.#unmountUnused(digest).catch((error: unknown) => {
        this.#options.log.error({ err: error, image: digest }, 'an image stays mounted');
      });
    }, LINGER_MS);
    timer.unref();
    this.#lingering.set(digest, timer);
  }

  async #unmountUnused(digest: string): Promise<void> {
    await this.#inTurn(digest, async () => {
      const tree = this.#trees.get(digest);
      if (this.#holds.has(digest) || (await this.#options.isUsed(digest))) return;
      const kept = this.#takeKept(digest);
      if (kept !== undefined) await this.#options.close(kept);
      if (tree === undefined) {
        await this.#clearStray(digest);
        return;
      }
      this.#trees.delete(digest);
      await this.#takeDown(digest, tree);
    });
  }

  /** Detaches what a keeper has left that was killed, or is of another version. */
  async #clearStray(digest: string): Promise<void> {
    const path = this.#pathOf(digest);
    if (!(await isMounted(digest, path))) return;
    await native().umount(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    await rmdir(path);
    this.#options.log.info({ image: digest, path }, 'a mount of an earlier keeper detached');
  }

  /** What is mounted now. */
  list(): TreeStatus[] {
    return [...this.#trees].map(([digest, tree]) => ({ digest, ...tree }));
  }

  /**
   * Goes on with mounts that an earlier daemon has left with the keeper: those that are in use are fetched
   * for again, the others are unmounted by `drop`. Never rejects.
   */
  async adopt(digests: string[], drop: (digest: string) => Promise<void>): Promise<void> {
    const { isUsed, log } = this.#options;
    const adoptOne = async (digest: string) => {
      if (this.#ending || this.#trees.has(digest)) return;
      if (this.#holds.has(digest) || (await isUsed(digest))) await this.#mounted(digest);
      else await drop(digest);
    };
    for (const digest of digests) {
      try {
        // A container may be starting on it at this moment.
        await this.#inTurn(digest, () => adoptOne(digest));
      } catch (error) {
        // What has arrived can be read all the same; the next container tries again.
        log.error({ err: error, image: digest }, 'a mounted image does not go on arriving');
      }
    }
  }

  /**
   * Detaches what stands at mount points of images, is in no reachable keeper, and is under no snapshot: a keeper
   * was killed, or is of another version. Never rejects.
   * @param kept  images that the keeper has
   */
  async clearStrays(kept: ReadonlySet<string>): Promise<void> {
    const { directory, isUsed, log } = this.#options;
    try {
      for (const { mountPoint, source: digest } of await readMounts()) {
        if (!mountPoint.startsWith(`${directory}/`) || kept.has(digest)) continue;
        await this.#inTurn(digest, async () => {
          if (this.#trees.has(digest) || this.#holds.has(digest) || (await isUsed(digest))) return;
          await this.#clearStray(digest);
        });
      }
    } catch (error) {
      log.error({ err: error }, 'a mount of an earlier keeper stays');
    }
  }

  /** Unmounts what nobody stands on, and leaves the rest to the keeper. */
  async endAll(): Promise<void> {
    this.#ending = true;
    for (const timer of this.#lingering.values()) clearTimeout(timer);
    await Promise.allSettled(this.#queues.values());
    for (const digest of [...this.#kept.keys()]) {
      const receiver = this.#takeKept(digest);
      if (receiver !== undefined) this.#giveBack(receiver);
    }
    for (const [digest, tree] of this.#trees) {
      this.#trees.delete(digest);
      try {
        tree.waits.stop();
        if (await this.#options.isUsed(digest)) await this.#options.close(tree.receiver);
        else await this.#takeDown(digest, tree);
      } catch (error) {
        this.#options.log.error({ err: error, image: digest }, 'an image was not taken down');
      }
    }
  }
}
