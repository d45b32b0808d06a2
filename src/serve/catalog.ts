// What the server knows about its images and bundles, as an interface: SqliteCatalog implements it
// (catalog-sqlite.ts), another database can, behind the same tests (catalog.test.ts). No file is
// read or written through it; those are BlobStore's (blobs.ts).
//
// Every method is one transaction. A crash leaves each of them done or not done.

/** An image, named by its manifest digest. It exists whole: its row is written last. */
export interface ImageRecord {
  /** Manifest digest, `sha256:...`. */
  digest: string;
  /** os/arch[/variant]. */
  platform: string;
  /** Rows of the TOC; bytes of the unique contents. */
  entries: number;
  bytes: number;
  layers: number;
  /** ms since 1970. */
  addedAt: number;
}

/** An image under one of its names; `name` is undefined where a newer image has taken it over. */
export interface NamedImage extends ImageRecord {
  name: string | undefined;
}

/** A computed bundle. */
export interface BundleRecord {
  /** Hex digest of the preamble: the bundle's name in URLs. */
  id: string;
  /** What it was computed from (bundle-cache.ts); bundles of equal key are equal. */
  key: string;
  /** The same without what orders it: bundles of one family bring the same contents, in different orders. */
  family: string;
  /** Manifest digest of the image it makes. */
  image: string;
  bytes: number;
  headerBytes: number;
  /** The one a worker without any image gets: kept for as long as the image. */
  fresh: boolean;
  createdAt: number;
  /** ms since 1970; exact to a minute. */
  usedAt: number;
}

/** What a removal took away, for the files to follow. */
export interface Removed {
  /** Number of names dropped. */
  names: number;
  /** Digests of images that are no longer there. */
  images: string[];
  /** Ids of their bundles: no key finds them any more, and they wait for `dropBundle`. */
  bundles: string[];
}

/** A trace that a worker has reported. */
export interface TraceRecord {
  /** sha256 (hex) of its text: equal reports are one. */
  id: string;
  group: string;
  /** The image as the recorder named it. */
  image: string;
  /** NAME:TAG in the catalog's normal form, where one is known. */
  name: string | undefined;
  /** Manifest digest, where the recorder gave it or the catalog knew the name. */
  digest: string | undefined;
  platform: string | undefined;
  /** ms since 1970. */
  startedAt: number;
  durationMs: number;
  /** Files seen, and bytes of the text. */
  files: number;
  bytes: number;
  receivedAt: number;
}

/** How much is kept of what workers report: the last of each image, and of all. */
export interface TraceBounds {
  tracesPerImage: number;
  tracesMaxBytes: number;
}

/** The order in force for an image's bundles. */
export interface RanksRecord {
  /** Names the order: part of the key of bundles. Never empty. */
  version: string;
  /** As ranks.ts packs them. */
  data: Uint8Array;
  /** Ranks in `data`, and runs that they come from. */
  count: number;
  runs: number;
}

/** An image whose order may have changed; `mark` tells this note from a later one for the same image. */
export interface Reorder {
  image: string;
  mark: number;
}

export interface Catalog {
  /**
   * Adds an image, its contents (32 bytes each), its first bundle, all of whose files are in place, and its order; where
   * it is known already, only the name moves.
   */
  addImage(
    image: ImageRecord,
    contents: Buffer,
    name: string,
    bundle?: BundleRecord | undefined,
    ranks?: RanksRecord | undefined,
  ): Promise<void>;
  /** Gives an image that is there a name, taken from whatever image of the same platform had it. False: no such image. */
  nameImage(digest: string, name: string): Promise<boolean>;
  /** Every image under every name, sorted by name, then platform; unnamed ones last. */
  listImages(): Promise<NamedImage[]>;
  /** The images of a name: at most one for each platform. */
  findByName(name: string): Promise<NamedImage[]>;
  findByDigest(digest: string): Promise<NamedImage | undefined>;
  /**
   * Drops a name (of one platform, or of all), or all names of a digest, and then each of those images that has no
   * name left. `contentsOf` has the contents of every image that may go.
   */
  removeImages(
    which: { name: string; platform: string | undefined } | { digest: string },
    contentsOf: ReadonlyMap<string, Buffer>,
  ): Promise<Removed>;
  /** For each content (32 bytes each) 1 where some image uses it, else 0. */
  usedContents(contents: Buffer): Promise<Uint8Array>;

  findBundle(key: string): Promise<BundleRecord | undefined>;
  bundleById(id: string): Promise<BundleRecord | undefined>;
  /** The fresh-deploy bundle of an image. */
  freshBundle(image: string): Promise<BundleRecord | undefined>;
  /** The newest bundle of a family that can be found by key. */
  newestOfFamily(family: string): Promise<BundleRecord | undefined>;
  /**
   * Adds a bundle whose file is in place, or replaces its row; a fresh one takes over from the one before. False: its
   * image has gone meanwhile.
   */
  addBundle(bundle: BundleRecord): Promise<boolean>;
  touchBundle(id: string, usedAt: number): Promise<void>;
  /** Makes a bundle unfindable by key; by id it is served until `dropBundle`. */
  retireBundle(id: string): Promise<void>;
  /** Forgets a retired bundle. False: it is none, or has been added again meanwhile. */
  dropBundle(id: string): Promise<boolean>;
  /** All bundles that can be found by key, least recently used first. */
  listBundles(): Promise<BundleRecord[]>;
  /** Ids of all bundles, retired ones too. */
  bundleIds(): Promise<string[]>;
  retiredBundles(): Promise<string[]>;

  /**
   * Adds a trace and its compressed text, notes that the images of these digests need another look, and drops the
   * oldest traces beyond the bounds. False: it was there already, and nothing has changed.
   */
  addTrace(
    trace: TraceRecord,
    data: Uint8Array,
    images: readonly string[],
    bounds: TraceBounds,
  ): Promise<boolean>;
  /** All traces, the last received first. */
  listTraces(): Promise<TraceRecord[]>;
  /** Compressed texts, each undefined where there is no such trace. */
  traceData(ids: readonly string[]): Promise<(Uint8Array | undefined)[]>;
  /** Removes a trace and notes that the images need another look. False: there is none. */
  removeTrace(id: string, images: readonly string[]): Promise<boolean>;
  ranksOf(image: string): Promise<RanksRecord | undefined>;
  /** The version of an image's order; empty where it is that of the tree. */
  orderOf(image: string): Promise<string>;
  /** Puts an order in force; undefined: that of the tree. Nothing happens where the image has gone. */
  setRanks(image: string, ranks: RanksRecord | undefined): Promise<void>;
  /** Notes that images need another look; those that are not there are left out. */
  noteReorders(images: readonly string[]): Promise<void>;
  /** The oldest note. */
  nextReorder(): Promise<Reorder | undefined>;
  /** True where the image has a note. */
  isReordering(image: string): Promise<boolean>;
  /** Drops a note, unless there is a later one for the image. */
  dropReorder(reorder: Reorder): Promise<void>;

  /**
   * Notes that files are about to be added or taken away. A note that is still there at start means that there may be
   * files which no row names.
   */
  openChange(): Promise<number>;
  closeChange(id: number): Promise<void>;
  /** Number of notes left by processes that died. */
  openChanges(): Promise<number>;
  clearChanges(): Promise<void>;

  /** Resolves when the database answers. */
  ping(): Promise<void>;
  close(): Promise<void>;
}
