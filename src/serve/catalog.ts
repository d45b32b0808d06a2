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

export interface Catalog {
  /**
   * Adds an image, its contents (32 bytes each) and its first bundle, all of whose files are in place; where it is
   * known already, only the name moves.
   */
  addImage(
    image: ImageRecord,
    contents: Buffer,
    name: string,
    bundle?: BundleRecord | undefined,
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
  /** Adds a bundle whose file is in place. False: its image has gone meanwhile. */
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
