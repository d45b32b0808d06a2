// `firstlight ls`: mounts and images of this worker. Starts the daemon only to read its store; where
// none runs nothing is mounted, but the store has images all the same.
import type {
  MountStatus,
  PulledStatus,
  SnapshotStatus,
  StoredImage,
} from '../../daemon/control.ts';
import { call } from '../client.ts';
import type { Context } from '../context.ts';
import { formatBytes, formatTable, shortDigest } from '../print.ts';

/** `complete`, or how much has arrived. */
export function arrival(mount: Pick<MountStatus, 'transfer'>): string {
  const { state, bytes, bytesDone } = mount.transfer;
  if (state === 'complete') return 'complete';
  const share = bytes === 0 ? 0 : Math.floor((100 * bytesDone) / bytes);
  return `${state} ${share}%`;
}

export async function run(context: Context): Promise<undefined> {
  const mounts = (await call<MountStatus[]>(context, { op: 'status' })) ?? [];
  const images = (await call<StoredImage[]>(context, { op: 'images' })) ?? [];
  const snapshots = (await call<SnapshotStatus[]>(context, { op: 'snapshots' })) ?? [];
  const pulls = (await call<PulledStatus[]>(context, { op: 'pulls' })) ?? [];
  if (context.json) {
    context.printJson({ mounts, images, snapshots, pulls });
    return undefined;
  }
  const mountRows = mounts.map((m) => [m.directory, m.image, m.rw, arrival(m)]);
  const imageRows = images.map((image) => [
    image.names.join(' ') || '-',
    shortDigest(image.digest),
    image.platform,
    formatBytes(image.bytes),
    image.complete ? 'complete' : 'incomplete',
  ]);
  context.print(formatTable([['MOUNT', 'IMAGE', 'RW', 'STATE'], ...mountRows]));
  context.print('');
  context.print(formatTable([['IMAGE', 'DIGEST', 'PLATFORM', 'SIZE', 'STATE'], ...imageRows]));
  const idle = snapshots.filter(({ state }) => state !== 'mounted');
  if (idle.length > 0) {
    const rows = idle.map(({ id, image, directory, state }) => [id, image, directory, state]);
    context.print('');
    context.print(formatTable([['CHANGES', 'IMAGE', 'LAST MOUNTED AT', 'STATE'], ...rows]));
  }
  if (pulls.length === 0) return undefined;
  const pullRows = pulls.map(({ image, digest, way, reason, users }) => [
    image ?? '-',
    shortDigest(digest),
    way,
    String(users),
    reason ?? '',
  ]);
  context.print('');
  context.print(
    formatTable([['PULLED BY CONTAINERD', 'DIGEST', 'WAY', 'USERS', 'REASON'], ...pullRows]),
  );
  return undefined;
}
