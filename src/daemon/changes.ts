// What the mounts of one store have written, told, found again and removed. What does not live here: a
// snapshot's directories and record (tree/snapshot.ts), and mounting (mount-table.ts).
import {
  dropSnapshot,
  findLeft,
  listSnapshots,
  readRecord,
  snapshotDirectories,
} from '../tree/snapshot.ts';
import type { MountRequest, SnapshotStatus } from './control.ts';

/** Snapshots of one store. */
export class Changes {
  readonly #snapshots: string;
  readonly #isUsed: (id: string) => boolean;
  /** Snapshots that are being removed; each settles when its directory is gone, and never rejects. */
  readonly #removing = new Map<string, Promise<void>>();

  /**
   * @param snapshots  the store's directory of them
   * @param isUsed     whether a mount has one, or may still write to it
   */
  constructor(snapshots: string, isUsed: (id: string) => boolean) {
    this.#snapshots = snapshots;
    this.#isUsed = isUsed;
  }

  /**
   * Name of changes that a mount is to find again: those that it asks for by name, where there are any,
   * or what a killed daemon has left of the same image at the same directory.
   * @param digest  manifest digest of the image
   * @param hold    called with the name at the moment of the decision: from then on it is used. A name that is asked
   *   for is held by its caller before.
   */
  async find(
    { directory: mountPoint, lease, name, rw }: MountRequest,
    digest: string,
    hold: (id: string) => void,
  ): Promise<string | undefined> {
    if (rw === 'off') return undefined;
    if (name !== undefined) {
      // A removal that began before the name was held takes its changes along.
      await this.#removing.get(name);
      return (await listSnapshots(this.#snapshots)).find(({ id }) => id === name)?.id;
    }
    if (mountPoint === undefined || lease !== undefined) return undefined;
    const isTaken = (id: string) => this.#isUsed(id) || this.#removing.has(id);
    for (;;) {
      const id = await findLeft(this.#snapshots, { digest, mountPoint }, isTaken);
      if (id === undefined) return undefined;
      // A collection may have begun with it since the directory was read.
      if (isTaken(id)) continue;
      hold(id);
      return id;
    }
  }

  /** Changes of live mounts, kept ones, and what killed daemons have left. */
  async list(): Promise<SnapshotStatus[]> {
    const found: SnapshotStatus[] = [];
    for (const { id, record } of await listSnapshots(this.#snapshots)) {
      const isUsed = this.#isUsed(id);
      if (record === undefined || (record.state === 'dropped' && !isUsed)) continue;
      const { digest, source, mountPoint, createdAt } = record;
      const kept = record.state === 'kept';
      const state = isUsed ? 'mounted' : kept ? 'kept' : 'left';
      found.push({ id, image: source, digest, state, kept, directory: mountPoint, createdAt });
    }
    return found;
  }

  /** Whether changes outlive their mounts. */
  async areKept(id: string): Promise<boolean> {
    return (await this.list()).some((each) => each.id === id && each.kept);
  }

  /** Removes the changes of a mount that was detached and has lost its last user. */
  async removeDropped(id: string): Promise<void> {
    const dirs = snapshotDirectories(this.#snapshots, id);
    if ((await readRecord(dirs))?.state === 'dropped') await dropSnapshot(dirs);
  }

  /**
   * Removes the snapshots of mounts that are gone; what is in use, or may be, stays.
   * @param keptToo  also those that are kept
   * @returns their number
   */
  async removeUnused(keptToo: boolean): Promise<number> {
    let removed = 0;
    for (const { id } of await listSnapshots(this.#snapshots)) {
      if (this.#isUsed(id) || this.#removing.has(id)) continue;
      if (await this.#remove(id, keptToo)) removed++;
    }
    return removed;
  }

  /** Between here and the removal nothing waits: a mount that comes now sees that it is being removed. */
  async #remove(id: string, keptToo: boolean): Promise<boolean> {
    const gone = Promise.withResolvers<void>();
    this.#removing.set(id, gone.promise);
    try {
      return await dropSnapshot(snapshotDirectories(this.#snapshots, id), keptToo);
    } finally {
      this.#removing.delete(id);
      gone.resolve();
    }
  }
}
