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
   */
  async find(
    { directory: mountPoint, lease, name, rw }: MountRequest,
    digest: string,
  ): Promise<string | undefined> {
    if (rw === 'off') return undefined;
    if (name !== undefined) {
      return (await listSnapshots(this.#snapshots)).find(({ id }) => id === name)?.id;
    }
    if (mountPoint === undefined || lease !== undefined) return undefined;
    return findLeft(this.#snapshots, { digest, mountPoint }, this.#isUsed);
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
      if (this.#isUsed(id)) continue;
      if (await dropSnapshot(snapshotDirectories(this.#snapshots, id), keptToo)) removed++;
    }
    return removed;
  }
}
