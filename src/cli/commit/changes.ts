// The changes of one mount, read from its upper directory by this process: the daemon only says which
// mount stands at a directory. Nothing is read through the mount, so programs that use it notice nothing.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { MountStatus, SnapshotStatus } from '../../daemon/control.ts';
import type { Toc } from '../../delta/toc.ts';
import { checkToc } from '../../delta/toc-check.ts';
import { FirstlightError } from '../../errors/errors.ts';
import { addonError, native } from '../../native/index.ts';
import { Layout } from '../../store/layout.ts';
import { TemplateEntry } from '../../tree/entry.ts';
import { snapshotDirectories } from '../../tree/snapshot.ts';
import { readUpper, type UpperNode } from '../../tree/upper-tree.ts';
import { call } from '../client.ts';
import type { Context } from '../context.ts';
import { resolveExistingMount } from '../mount-point.ts';

/** A mount's changes with the image that they are to. */
export interface MountChanges {
  /** Manifest digest, and the name that it was mounted by. */
  digest: string;
  image: string;
  /** Directory of the image in the store: manifest.json, config.json, contents. */
  imageDirectory: string;
  layout: Layout;
  root: TemplateEntry;
  upper: UpperNode;
  upperDirectory: string;
}

/** Which snapshot the user means: a mount's directory, or the name of kept changes. */
async function findSnapshot(
  context: Context,
  place: string,
): Promise<{ id: string; digest: string; image: string }> {
  const directory = resolveExistingMount(place);
  const mounts = (await call<MountStatus[]>(context, { op: 'status' })) ?? [];
  const mount = mounts.find((each) => each.directory === directory);
  if (mount?.rw === 'off') {
    throw new FirstlightError('usage', `${place} is mounted read-only: nothing can have changed`, {
      hint: 'mount it with --rw overlay',
    });
  }
  if (mount !== undefined) return mount;
  const snapshots = (await call<SnapshotStatus[]>(context, { op: 'snapshots' })) ?? [];
  const kept = snapshots.find(({ id }) => id === place);
  if (kept !== undefined) return kept;
  throw new FirstlightError('not-found', `${place} is neither a mount nor the name of changes`, {
    hint: 'see firstlight ls',
  });
}

/**
 * Reads the changes at a mount's directory, or those kept under a name.
 * @throws FirstlightError `not-found`, `usage`, `unsupported`
 */
export async function readChanges(context: Context, place: string): Promise<MountChanges> {
  const error = addonError();
  if (error !== undefined) throw error;
  const { id, digest, image } = await findSnapshot(context, place);
  const layout = new Layout(context.settings.text('root'));
  const imageDirectory = layout.imageDirectory(digest);
  const toc: Toc = checkToc(await readFile(join(imageDirectory, 'toc')));
  const upperDirectory = snapshotDirectories(layout.snapshots, id).upper;
  const upper = readUpper(native().upper, upperDirectory);
  const root = new TemplateEntry(toc, 0);
  return { digest, image, imageDirectory, layout, root, upper, upperDirectory };
}
