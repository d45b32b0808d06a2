// The control protocol between a thin client and the daemon: types only, no transport.
//
// One connection carries one request: a line of JSON from the client, then lines of JSON from the
// daemon, the last of which holds `result` or `error`. HTTP was measured and left: importing
// node:http costs a client 27 ms of the 60 ms that a command may take, node:net costs 3.
import type { ErrorKind } from '../errors/errors.ts';
import type { OpensChoice } from '../fuse/opens.ts';
import type { SessionStats } from '../native/index.ts';
import type { MountFeatures } from '../tree/fs-instance.ts';
import type { TreeStats } from '../tree/session.ts';

/** How a mount can be written to. */
export type RwMode = 'overlay' | 'fuse' | 'off';
/** Which part speaks to the kernel. */
export type SessionKind = 'kernel' | 'fuse-native';

/** What `mount` and `run` ask for. */
export interface MountRequest {
  op: 'mount';
  /** NAME:TAG or NAME@sha256:... as the user typed it. */
  image: string;
  /** Absolute path of an existing directory, resolved by the client; undefined: below the root's snapshots. */
  directory?: string;
  /** A dead mount of ours stands at the directory (ENOTCONN): detach it first. */
  replaceDead?: boolean;
  server: string;
  /** Absolute path of the file with the token for the server; undefined: what the daemon was told before. */
  tokenFile?: string;
  platform: string;
  rw: RwMode;
  session: SessionKind;
  /** Name of the mount's changes; those of an earlier mount of this name are found again. */
  name?: string;
  /** The changes outlive the mount, whatever ends it. */
  keep?: boolean;
  /** Group that the mount's trace belongs to. */
  trace?: string;
  /** Images offered as bases; undefined: every complete image of the store. */
  updateFrom?: string[];
  /** A read that waits longer for its bytes ends in EIO; 0: no bound. */
  waitTimeoutMs: number;
  /** Threads that answer the kernel; 0: one for each CPU, at most 4. */
  threads: number;
  passthrough: boolean;
  /** Whether the kernel may come to open files alone; undefined: auto. */
  opens?: OpensChoice;
  /** Stream progress, and end only when every byte has arrived. */
  wait: boolean;
  /** The mount ends with this connection, whatever ends the client. */
  lease?: Lease;
  /** When the command was started: ms since 1970. */
  requestedAt: number;
  /** Mount namespace of the client, as /proc/self/ns/mnt names it: the daemon's must be the same. */
  mountNamespace?: string;
}

/** What the daemon removes when the client of a leased mount is gone. */
export interface Lease {
  /** Container to kill and delete: `[runtime, ...global options]` and its id. */
  container?: { command: string[]; id: string };
  /** Directory of the container's configuration. */
  bundle?: string;
}

/** Turns the recording of live mounts on or off. */
export interface TraceRequest {
  op: 'trace';
  on: boolean;
  /** Of the mount there; undefined: of every mount. */
  directory?: string;
  /** Group of the traces that begin. */
  group: string;
}

/** What became of one mount's recording. */
export interface TraceSwitched {
  directory: string;
  image: string;
  /** Group that is recorded for from now on; null where it is off. */
  group: string | null;
  /** Trace file of the run that has ended; null where there was none, or it saw nothing. */
  path: string | null;
}

export type ControlRequest =
  | MountRequest
  /** `keep`: what was written outlives the mount. */
  | { op: 'umount'; directory: string; lazy: boolean; keep?: boolean }
  | { op: 'status'; directory?: string; follow?: boolean }
  | { op: 'images' }
  | { op: 'snapshots' }
  /** What containerd has pulled through the snapshotter. */
  | { op: 'pulls' }
  /** `all`: also images that nothing uses, though they have a name. `snapshots`: also changes that are kept. */
  | { op: 'gc'; all?: boolean; snapshots?: boolean }
  | { op: 'verify' }
  | TraceRequest
  | { op: 'ping' }
  | { op: 'stop' };

/** Where the transfer of an image stands. Times are ms since 1970, null where it has not happened. */
export interface TransferStatus {
  /** `ready` = nothing had to be fetched. */
  state: 'receiving' | 'retrying' | 'complete' | 'failed';
  framesDone: number;
  frames: number;
  /** Compressed bytes of frames. */
  bytesDone: number;
  bytes: number;
  /** Bytes of contents, decompressed. */
  rawBytesDone: number;
  rawBytes: number;
  headerBytes: number;
  retries: number;
  headerAt: number | null;
  firstFrameAt: number | null;
  lastFrameAt: number | null;
  /** The last failure, kept until the next success. */
  error: string | null;
}

/** One mount as `status --json` prints it. */
export interface MountStatus {
  id: string;
  directory: string;
  image: string;
  /** Manifest digest. */
  digest: string;
  platform: string;
  server: string;
  rw: RwMode;
  session: SessionKind;
  trace: string | null;
  /** `closed`: the kernel has ended the session, though nobody asked us to. */
  state: 'mounted' | 'unmounting' | 'closed';
  requestedAt: number;
  headerAt: number | null;
  mountedAt: number;
  firstReadAt: number | null;
  firstFrameAt: number | null;
  lastFrameAt: number | null;
  bytesDone: number;
  bytes: number;
  headerBytes: number;
  transfer: TransferStatus;
  features: MountFeatures | null;
  stats: SessionStats | null;
  /** Of a mount with `--rw fuse`. */
  tree: TreeStats | null;
  /** Requests that wait for contents now, through all mounts of the image. */
  waiting: number;
}

/** The daemon itself, as `status --json` prints it. */
export interface DaemonStatus {
  pid: number;
  version: string;
  root: string;
  startedAt: number;
  rssBytes: number;
  /** null: it does not end by itself. */
  idleMs: number | null;
  /** Socket that containerd connects to; null where it is no snapshotter. */
  snapshotter: string | null;
}

/** One image of the store, as `ls --json` prints it. */
export interface StoredImage {
  names: string[];
  digest: string;
  platform: string;
  complete: boolean;
  /** Bytes of its unique contents, and names in its tree. */
  bytes: number;
  entries: number;
  /** Mounts and transfers that use it now. */
  users: number;
  /** ms since 1970. */
  createdAt: number;
  lastUsedAt: number;
}

/** One image that containerd has pulled, as `ls --json` prints it. */
export interface PulledStatus {
  /** As containerd's client calls it; null where it did not say. */
  image: string | null;
  /** Manifest digest of one that comes lazily, else the chain id of its last layer. */
  digest: string;
  way: 'lazy' | 'ordinary';
  /** Why it was pulled in the ordinary way; null where it comes lazily, or where nobody asked for more. */
  reason: string | null;
  /** Snapshots of containers and the like that stand on it now. */
  users: number;
  /** ms since 1970. */
  createdAt: number;
}

/** Changes to an image, as `ls --json` prints them. */
export interface SnapshotStatus {
  /** The name that `mount --name` finds them by. */
  id: string;
  /** The image as it was mounted, and its manifest digest. */
  image: string;
  digest: string;
  /** Of a live mount; kept without one; left by a daemon that was killed, for the next `gc` to remove. */
  state: 'mounted' | 'kept' | 'left';
  /** They outlive their mounts. */
  kept: boolean;
  /** Where they were mounted last. */
  directory: string;
  /** ms since 1970. */
  createdAt: number;
}

/** What became of an unmounted mount's changes. */
export interface Unmounted {
  directory: string;
  /** Their name, where they are kept. */
  kept: string | null;
}

/** What `gc` removed. */
export interface GcResult {
  /** Changes that no mount uses. */
  snapshots: number;
  images: number;
  contents: number;
  bytes: number;
}

/** What `verify` found; contents by sha256. */
export interface VerifyResult {
  /** Number of contents read. */
  contents: number;
  /** Bytes were wrong: put aside, and fetched again when wanted. */
  damaged: string[];
  /** Used by an image that counted as complete, and not there. */
  missing: string[];
  /** Images that count as incomplete because of the two. */
  images: string[];
  /** Images whose own manifest is damaged. */
  damagedImages: string[];
}

export type ControlEvent =
  | { event: 'mounted'; mount: MountStatus }
  | { event: 'status'; mounts: MountStatus[] }
  | { event: 'progress'; done: number; total: number };

export type ControlLine =
  | ControlEvent
  | { result: unknown }
  | { error: { kind: ErrorKind; message: string; hint?: string } };
