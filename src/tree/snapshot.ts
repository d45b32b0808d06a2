// The directories of one writable mount below snapshots/, and what is written down about them: made
// new, found again after a killed daemon, kept. What is in upper/ is overlayfs' own format, whichever
// way it was written. What does not live here: mounting (fs-instance.ts).
//
//   <snapshots>/<id>/snapshot.json   which image the changes are to, and what is to become of them
//   <snapshots>/<id>/lower           the read-only session, where kernel overlayfs stands above it
//   <snapshots>/<id>/upper           the changes
//   <snapshots>/<id>/work            of overlayfs, or of our tree
import {
  chmod,
  chown,
  mkdir,
  readdir,
  readFile,
  rename,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';
import { removeTree } from '../store/deep-tree.ts';
import type { Template } from './template.ts';

/** Directories of one writable mount. */
export interface SnapshotDirectories {
  root: string;
  /** The read-only session is mounted here. */
  lower: string;
  upper: string;
  work: string;
}

const RECORD = v.object({
  digest: v.string(),
  source: v.string(),
  mountPoint: v.string(),
  createdAt: v.number(),
  state: v.picklist(['mounted', 'kept', 'dropped']),
});

/** What is written down about a snapshot. */
export interface SnapshotRecord {
  /** Manifest digest of the image that the changes are to. */
  digest: string;
  /** The image as it was asked for. */
  source: string;
  mountPoint: string;
  /** ms since 1970. */
  createdAt: number;
  /** `mounted`: of a live mount, or of a killed daemon. `kept`: outlives its mounts. `dropped`: to be removed. */
  state: 'mounted' | 'kept' | 'dropped';
}

const S_IPERM = 0o7777;

/** Where the directories of a snapshot are. */
export function snapshotDirectories(snapshots: string, id: string): SnapshotDirectories {
  const root = join(snapshots, id);
  return { root, lower: join(root, 'lower'), upper: join(root, 'upper'), work: join(root, 'work') };
}

/** Reads the record of a snapshot; undefined where there is none that can be read. */
export async function readRecord({
  root,
}: Pick<SnapshotDirectories, 'root'>): Promise<SnapshotRecord | undefined> {
  try {
    return v.parse(RECORD, JSON.parse(await readFile(join(root, 'snapshot.json'), 'utf8')));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // A crash while it was made, or another version's: nothing is known about the directory.
    if (code === 'ENOENT' || code === 'ENOTDIR' || code === undefined) return undefined;
    throw error;
  }
}

/** Replaces the record of a snapshot. */
export async function writeRecord(
  { root }: Pick<SnapshotDirectories, 'root'>,
  record: SnapshotRecord,
): Promise<void> {
  const path = join(root, 'snapshot.json');
  await writeFile(`${path}.new`, `${JSON.stringify(record)}\n`, { mode: 0o600, flush: true });
  await rename(`${path}.new`, path);
}

/** What a snapshot is to become. One that is kept stays kept. */
export async function setState(
  dirs: Pick<SnapshotDirectories, 'root'>,
  state: SnapshotRecord['state'],
): Promise<void> {
  const record = await readRecord(dirs);
  if (record === undefined || record.state === 'kept') return;
  await writeRecord(dirs, { ...record, state });
}

/**
 * Removes a snapshot, with its changes.
 * @param kept  also one that is kept
 * @returns whether it is gone
 */
export async function dropSnapshot(
  dirs: Pick<SnapshotDirectories, 'root'>,
  kept = false,
): Promise<boolean> {
  if (!kept && (await readRecord(dirs))?.state === 'kept') return false;
  // First: what a crash leaves of the rest must not be taken for changes that are whole.
  await removeTree(join(dirs.root, 'snapshot.json'));
  await removeTree(dirs.root);
  return true;
}

/** Every snapshot of a store, in the order of their names; without a record where none can be read. */
export async function listSnapshots(
  snapshots: string,
): Promise<{ id: string; record: SnapshotRecord | undefined }[]> {
  const ids = (await readdir(snapshots)).sort();
  return Promise.all(
    ids.map(async (id) => ({ id, record: await readRecord(snapshotDirectories(snapshots, id)) })),
  );
}

/**
 * Makes the directories of a new snapshot. The merged root shows upper's own attributes, so upper
 * gets those of the image's root (its time to the microsecond, which is what Node can set).
 * @throws FirstlightError 'exists' where there is one of this id
 */
export async function makeSnapshot(
  dirs: SnapshotDirectories,
  template: Template,
  record: SnapshotRecord,
): Promise<void> {
  try {
    await mkdir(dirs.root, { mode: 0o700 });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
    throw new FirstlightError('exists', `${dirs.root} is there already`, {
      hint: 'choose another name, or run "firstlight gc"',
      cause,
    });
  }
  for (const path of [dirs.lower, dirs.work, dirs.upper]) await mkdir(path, { mode: 0o755 });
  const root = template.root.attributes();
  await chown(dirs.upper, root.uid, root.gid);
  await chmod(dirs.upper, root.mode & S_IPERM);
  const seconds = root.mtimeSec + root.mtimeNsec / 1e9;
  await utimes(dirs.upper, seconds, seconds);
  // Last: a snapshot with a record is whole.
  await writeRecord(dirs, record);
}

/**
 * Takes a snapshot that is there for another mount of the same image.
 * @returns its record as it was
 * @throws FirstlightError 'not-found' without a record, 'exists' where it is of another image
 */
export async function resumeSnapshot(
  dirs: SnapshotDirectories,
  now: Pick<SnapshotRecord, 'digest' | 'source' | 'mountPoint'>,
): Promise<SnapshotRecord> {
  const found = await readRecord(dirs);
  if (found === undefined) {
    throw new FirstlightError('not-found', `${dirs.root} holds no changes that can be used`, {
      hint: 'remove it with "firstlight gc"',
    });
  }
  if (found.digest !== now.digest) {
    throw new FirstlightError(
      'exists',
      `the changes in ${dirs.root} are to another image: ${found.source} as of ${found.digest}`,
      { hint: 'mount that one by its digest, or choose another name' },
    );
  }
  for (const path of [dirs.lower, dirs.work]) await mkdir(path, { recursive: true, mode: 0o755 });
  await writeRecord(dirs, { ...found, ...now, state: found.state === 'kept' ? 'kept' : 'mounted' });
  return found;
}

/** The newest snapshot that a killed daemon has left of an image at a directory; `used` ones are live. */
export async function findLeft(
  snapshots: string,
  { digest, mountPoint }: Pick<SnapshotRecord, 'digest' | 'mountPoint'>,
  used: (id: string) => boolean,
): Promise<string | undefined> {
  let newest: { id: string; createdAt: number } | undefined;
  for (const { id, record } of await listSnapshots(snapshots)) {
    if (used(id) || record?.state !== 'mounted') continue;
    if (record.digest !== digest || record.mountPoint !== mountPoint) continue;
    const { createdAt } = record;
    if (newest === undefined || createdAt > newest.createdAt) newest = { id, createdAt };
  }
  return newest?.id;
}
