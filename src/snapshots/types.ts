// What a snapshot is, in containerd's terms, and what the records keep of one beyond that. Types only.

/** Kinds of snapshots; the numbers are those of the wire format (proto/snapshots.proto). */
export const KIND = { View: 1, Active: 2, Committed: 3 } as const;
export type Kind = (typeof KIND)[keyof typeof KIND];

/** How a kind is called in containerd's filters (`kind==committed`). */
export const KIND_NAMES: Record<Kind, string> = { 1: 'view', 2: 'active', 3: 'committed' };

export type Labels = Record<string, string>;

/** Disk use of one snapshot without its parents. */
export interface Usage {
  /** Allocated bytes. */
  bytes: number;
  inodes: number;
}

/** Where the tree of a committed snapshot comes from when it has no directory of its own. */
export interface LazyLayer {
  /** Manifest digest of the image that was asked for. */
  image: string;
  /** The image as the client calls it (`registry.example.com/shop/redis:7`), where it said so. */
  ref: string | null;
  /** Digest of the layer's blob in the registry, where it is known. */
  layerDigest: string | null;
  /**
   * Digest of the image in the store whose whole tree this snapshot and those below it are. The uppermost layer of an
   * image has it from the start; of a layer below, one is made only when something else is stacked on it.
   */
  tree: string | null;
}

/** One snapshot. */
export interface Snapshot {
  /** Names its directory. Never used twice. */
  id: number;
  /** Its key, or its name once it is committed. */
  key: string;
  /** containerd's namespace, for people: from the request, or from the key. */
  namespace: string;
  parentId: number | null;
  /** Key of the parent; empty where there is none. */
  parent: string;
  kind: Kind;
  /** ms since 1970. */
  createdAt: number;
  updatedAt: number;
  labels: Labels;
  /** Of a committed snapshot; 0 of others. */
  usage: Usage;
  /** Set where there is no directory. */
  lazy: LazyLayer | null;
  /** Why it was pulled in the ordinary way though it was asked for lazily; null where it was not asked for. */
  fallback: string | null;
}

/** One entry of a mount list: what containerd mounts for a container (proto/mount.proto). */
export interface Mount {
  type: string;
  source: string;
  target: string;
  options: string[];
}
