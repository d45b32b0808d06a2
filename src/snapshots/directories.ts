// Directories of snapshots: made aside, cleared away, and turned into the mounts that containerd
// performs. What does not live here: which snapshots there are (records), and images that come lazily.
//
//   <base>/records.db          what there is
//   <base>/snapshots/ID/fs     the layer: upper directory of an active snapshot, lower one once committed
//   <base>/snapshots/ID/work   overlayfs' own, of an active snapshot
//   <base>/snapshots/new-...   being made
//   <base>/images/HEX          where an image is mounted that comes lazily
import { randomBytes } from 'node:crypto';
import { access, chmod, chown, lstat, mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { removeTree } from '../store/deep-tree.ts';
import { KIND, type Mount, type Snapshot } from './types.ts';

/** Permissions and owner of a directory. */
export interface Ownership {
  uid: number;
  gid: number;
  /** Permission bits alone. */
  mode: number;
}

const PERMISSIONS = 0o7777;
const NEW = 'new-';

export class Directories {
  readonly base: string;
  readonly records: string;
  readonly snapshots: string;
  readonly images: string;
  /** Option that keeps overlayfs from refusing what copies of it have in use; none where the kernel lacks it. */
  #options: string[] = [];
  /** Names that are being made, and so are nobody's leftovers. */
  readonly #making = new Set<string>();

  readonly #log: Logger;

  private constructor(base: string, log: Logger) {
    this.#log = log;
    this.base = base;
    this.records = join(base, 'records.db');
    this.snapshots = join(base, 'snapshots');
    this.images = join(base, 'images');
  }

  /**
   * Opens or makes the directories below a base.
   * @throws FirstlightError `usage` where its path cannot stand in overlayfs' options
   */
  static async open(base: string, log: Logger): Promise<Directories> {
    if (/[,:\\"\s]/.test(base)) {
      throw new FirstlightError('usage', `containerd cannot use layers below ${base}`, {
        hint: 'choose a --root without blanks, commas, colons, quotes and backslashes',
      });
    }
    const directories = new Directories(base, log);
    // Layers hold other people's set-user-id programs: nobody but root looks in.
    await mkdir(base, { recursive: true, mode: 0o700 });
    for (const path of [directories.snapshots, directories.images]) {
      await mkdir(path, { recursive: true, mode: 0o700 });
    }
    const hasIndex = await access('/sys/module/overlay/parameters/index').then(
      () => true,
      // An old kernel, or overlayfs not loaded yet: then the kernel's default has to do.
      () => false,
    );
    if (hasIndex) directories.#options = ['index=off'];
    return directories;
  }

  /** The layer of a snapshot. */
  layer(id: number): string {
    return join(this.snapshots, String(id), 'fs');
  }

  /** Owner and permissions of the root of a snapshot's tree, as its layer shows them. */
  async ownership(id: number): Promise<Ownership> {
    const { uid, gid, mode } = await lstat(this.layer(id));
    return { uid, gid, mode: mode & PERMISSIONS };
  }

  /**
   * Makes the directories of a new snapshot aside; its path, for the records to move into place.
   * @param root  what the root of the tree below shows, which this layer's own root will hide
   */
  async make(root: Ownership | undefined, writable: boolean): Promise<string> {
    const name = `${NEW}${randomBytes(8).toString('hex')}`;
    const path = join(this.snapshots, name);
    this.#making.add(name);
    await mkdir(path, { mode: 0o700 });
    const layer = join(path, 'fs');
    await mkdir(layer, { mode: 0o755 });
    if (root !== undefined) {
      await chown(layer, root.uid, root.gid);
      await chmod(layer, root.mode);
    }
    if (writable) await mkdir(join(path, 'work'), { mode: 0o711 });
    return path;
  }

  /** What `make` made is in place, or is not wanted: then it is removed. */
  async made(path: string): Promise<void> {
    this.#making.delete(path.slice(this.snapshots.length + 1));
    await removeTree(path);
  }

  /** Removes the directory of a snapshot that the records no longer have. */
  async remove(id: number): Promise<void> {
    await removeTree(join(this.snapshots, String(id)));
  }

  /**
   * Removes what no record names; the number of directories.
   * @param recorded  asked after the directories were listed: what is made meanwhile is not touched
   */
  async clean(recorded: () => Promise<ReadonlySet<number>>): Promise<number> {
    let removed = 0;
    const names = (await readdir(this.snapshots)).filter((name) => !this.#making.has(name));
    const ids = await recorded();
    for (const name of names) {
      if (ids.has(Number(name))) continue;
      try {
        await removeTree(join(this.snapshots, name));
        removed++;
      } catch (error) {
        // One that cannot be removed (a file that is immutable) must not keep the service from starting.
        this.#log.error({ directory: name, err: error }, 'a directory of no snapshot stays');
      }
    }
    return removed;
  }

  /** Ids that have a directory. */
  async present(): Promise<Set<number>> {
    return new Set((await readdir(this.snapshots)).map(Number));
  }

  /**
   * The mounts of an active snapshot or a view, as the overlayfs snapshotter gives them.
   * @param lowers  directories of what it stands on, the uppermost first
   */
  mounts(snapshot: Snapshot, lowers: string[]): Mount[] {
    const active = snapshot.kind === KIND.Active;
    const [only] = lowers;
    const bind = (source: string, access: 'rw' | 'ro') => [
      { type: 'bind', source, target: '', options: [access, 'rbind'] },
    ];
    if (only === undefined) return bind(this.layer(snapshot.id), active ? 'rw' : 'ro');
    if (!active && lowers.length === 1) return bind(only, 'ro');
    const own = join(this.snapshots, String(snapshot.id));
    const upper = active ? [`workdir=${join(own, 'work')}`, `upperdir=${join(own, 'fs')}`] : [];
    const options = [...this.#options, ...upper, `lowerdir=${lowers.join(':')}`];
    return [{ type: 'overlay', source: 'overlay', target: '', options }];
  }
}
