// One mount as the daemon keeps it, and as it tells about it.
import type { Receiver } from '../receive/receiver.ts';
import type { FsInstance } from '../tree/fs-instance.ts';
import type { MountRequest, MountStatus } from './control.ts';
import type { MountNote } from './notes.ts';
import { transferStatus } from './transfers.ts';

/** One mount. */
export interface Mount {
  id: string;
  /** Where the user sees it. */
  directory: string;
  note: MountNote;
  request: MountRequest;
  receiver: Receiver;
  instance: FsInstance;
  state: MountStatus['state'];
  /** Set once it is being taken away; everybody waits for the same end. */
  ending: Promise<void> | undefined;
  releaseIdle: () => void;
  /** Resolves when it has been taken away. */
  gone: Promise<void>;
  setGone: () => void;
}

/** A mount as `status` shows it. */
export function describeMount(mount: Mount): MountStatus {
  const { request, receiver, instance } = mount;
  const transfer = transferStatus(receiver);
  const { features, stats, tree, mountedAt, optimizeGroup } = instance.status();
  return {
    id: mount.id,
    directory: mount.directory,
    image: request.image,
    digest: receiver.digest,
    platform: request.platform,
    server: request.server,
    rw: request.rw,
    // Not what was asked for: without the addon it is the portable one.
    session: features?.transport === 'fuse-native' ? 'fuse-native' : 'kernel',
    trace: optimizeGroup ?? null,
    state: mount.state,
    requestedAt: request.requestedAt,
    headerAt: transfer.headerAt,
    mountedAt,
    firstReadAt: stats === undefined || stats.firstReadAt === 0 ? null : stats.firstReadAt,
    firstFrameAt: transfer.firstFrameAt,
    lastFrameAt: transfer.lastFrameAt,
    bytesDone: transfer.bytesDone,
    bytes: transfer.bytes,
    headerBytes: transfer.headerBytes,
    transfer,
    features: features ?? null,
    stats: stats ?? null,
    tree: tree ?? null,
    waiting: receiver.template.waiting(),
  };
}
