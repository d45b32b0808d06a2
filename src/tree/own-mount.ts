// Knows a mount of ours among those at the same directory: unmounting goes by path, and must not take
// what somebody else has put there. /proc/self/mountinfo names mounts without touching them.
import { FirstlightError } from '../errors/errors.ts';
import { type MountLine, mountAt, readMounts } from '../store/mounts.ts';

/** Where a mount stands now. */
export type Place =
  /** At its directory, uppermost: an unmount by path takes it. */
  | 'top'
  /** No longer at its directory: somebody has unmounted or moved it. */
  | 'gone';

/** One mount that this process has made. */
export class OwnMount {
  readonly #path: string;
  readonly #id: number;
  readonly #device: string;

  private constructor(path: string, { id, device }: MountLine) {
    this.#path = path;
    this.#id = id;
    this.#device = device;
  }

  /** The uppermost mount at a directory, just made; undefined where there is none to be seen. */
  static async at(path: string): Promise<OwnMount | undefined> {
    const mount = mountAt(await readMounts(), path);
    return mount === undefined ? undefined : new OwnMount(path, mount);
  }

  /** @throws FirstlightError 'busy' where another mount stands over it */
  async place(): Promise<Place> {
    const mounts = await readMounts();
    const top = mountAt(mounts, this.#path);
    if (top === undefined) return 'gone';
    if (this.#is(top)) return 'top';
    const covered = mounts.some((mount) => mount.mountPoint === this.#path && this.#is(mount));
    if (!covered) return 'gone';
    throw new FirstlightError(
      'busy',
      `another mount (${top.type}, ${top.source}) stands over ${this.#path}`,
      { hint: `unmount that one first: umount ${this.#path}` },
    );
  }

  // A number may be given to another mount when its first one is gone; the device as well, but
  // hardly both.
  #is({ id, device }: MountLine): boolean {
    return id === this.#id && device === this.#device;
  }
}
