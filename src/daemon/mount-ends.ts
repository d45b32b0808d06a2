// How a mount is taken away: at once, in its container's own time, or detached where it stays in use.
// What does not live here: when (mount-table.ts).
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { Changes } from './changes.ts';
import type { Mount } from './mount.ts';
import type { Notes } from './notes.ts';
import type { Transfers } from './transfers.ts';
import { usersOf } from './users.ts';

/** The kernel takes a killed container's mount namespace down in its own time. */
const CONTAINER_GONE_MS = 3000;

export interface MountEndsOptions {
  notes: Notes;
  transfers: Transfers;
  changes: Changes;
  log: Logger;
  /** The mount is gone, or detached, and so are its files; what it held is about to be given back. */
  ended(mount: Mount): void;
}

/** The ends of this daemon's mounts. */
export class MountEnds {
  readonly #options: MountEndsOptions;
  readonly #log: Logger;
  /** Mounts that were detached while in use: their snapshots may still be written to. */
  readonly #detached = new Set<string>();

  constructor(options: MountEndsOptions) {
    this.#options = options;
    this.#log = options.log;
  }

  /** True for a mount that is detached and still has a user. */
  isDetached(id: string): boolean {
    return this.#detached.has(id);
  }

  /**
   * Takes a mount away; who asks while it is under way waits for the same end.
   * @param lazy  detaches what is in use
   * @param keep  keeps what was written
   * @throws FirstlightError `busy` where it is in use and not to be detached: it stays mounted then
   */
  end(mount: Mount, lazy: boolean, keep = false): Promise<void> {
    mount.ending ??= this.#takeDown(mount, lazy, keep).catch((error: unknown) => {
      mount.ending = undefined;
      mount.state = 'mounted';
      throw error;
    });
    return mount.ending;
  }

  async #takeDown(mount: Mount, lazy: boolean, keep: boolean): Promise<void> {
    const { id, note, instance } = mount;
    mount.state = 'unmounting';
    await this.#options.notes.endContainer(note);
    try {
      await this.#unmount(mount, keep);
    } catch (error) {
      if (!lazy) throw await this.#teardownError(mount, error);
      // Only where it is in use: what is detached may go on being written to, and its snapshot stays
      // until nobody does.
      this.#log.info({ id, directory: mount.directory }, 'in use: detached');
      this.#detached.add(id);
      await instance.teardown({ detach: true, keep });
      void instance.released.then(() => this.#released(id));
    }
    // Before it counts as gone: the next mount of its name or at its place makes files of the same names.
    await this.#options.notes.remove(note);
    this.#options.ended(mount);
    await this.#options.transfers.release(mount.receiver);
    mount.releaseIdle();
    mount.setGone();
    this.#log.info({ id, directory: mount.directory }, 'unmounted');
  }

  /** A detached mount has lost its last user. */
  async #released(id: string): Promise<void> {
    await this.#options.changes.removeDropped(id).catch((error: unknown) => {
      // The next `gc` tries again.
      this.#log.warn({ err: error, id }, 'what a mount has written could not be removed');
    });
    this.#detached.delete(id);
    this.#log.info({ id }, 'nobody uses it any more');
  }

  /** Unmounts what is not in use; a container that has just been killed gets a moment to be gone. */
  async #unmount({ instance, note }: Mount, keep: boolean): Promise<void> {
    const deadline = Date.now() + (note.lease === undefined ? 0 : CONTAINER_GONE_MS);
    for (;;) {
      try {
        await instance.teardown({ keep });
        return;
      } catch (error) {
        if (toFirstlightError(error).kind !== 'busy' || Date.now() >= deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  async #teardownError(mount: Mount, cause: unknown): Promise<FirstlightError> {
    const error = toFirstlightError(cause);
    // Another mount over it has words of its own.
    if (error.kind !== 'busy' || !error.message.endsWith('is in use')) return error;
    const users = await usersOf(mount.directory);
    const by = users.length === 0 ? '' : ` by ${users.join(', ')}`;
    return new FirstlightError('busy', `${mount.directory} is in use${by}`, {
      hint: 'end what uses it, or use --lazy',
      cause,
    });
  }
}
