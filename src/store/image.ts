// One image in the store: the directory images/<digest>/ and the files in it. What does not live
// here: names and use (layer-store.ts), contents (contents.ts), fetching (receive/).
//
//   toc            flat TOC, as native maps it
//   manifest.json  raw manifest; its sha256 is the image's digest
//   config.json    raw config
//   contents       32 bytes a content: its sha256, zeros while unknown
//   parts          32 bytes a part: sha256 of arrived parts of contents that have several
//   frames         preamble and compressed header of the bundle the image comes from, as received:
//                  what is needed to fetch any frame again
//   state          JSON: where the bundle is to be had, and whether all contents are here
//
// The directory is written aside, fsynced and renamed: an image exists whole or not at all. Slots of
// `contents` and `parts` are written in place, each within one sector; a slot says what a content
// should be, and never that it is there: that is the ContentStore's word, or a part's hash.
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as v from 'valibot';
import { HEADER } from '../delta/toc-layout.ts';
import { FirstlightError } from '../errors/errors.ts';
import { replaceFile, type StoreIo } from './io.ts';

/** What the `state` file holds. */
export interface ImageState {
  version: 1;
  /** NAME:TAG that the image was asked for by, or empty where by digest. */
  name: string;
  /** os/arch[/variant]. */
  platform: string;
  /** Server that the bundle comes from, and the bundle's own path and entity tag there. */
  server: string;
  bundlePath: string;
  etag: string;
  /** Every content is verified and durable. */
  complete: boolean;
}

const STATE = v.strictObject({
  version: v.literal(1),
  name: v.string(),
  platform: v.string(),
  server: v.string(),
  bundlePath: v.string(),
  etag: v.string(),
  complete: v.boolean(),
});

/** What a new image is made of. */
export interface NewImage {
  /** Manifest digest, `sha256:...`. */
  digest: string;
  manifest: Buffer;
  config: Buffer;
  /** Flat TOC, checked. */
  toc: Buffer;
  /** Number of contents and of parts in the TOC. */
  contents: number;
  parts: number;
  /** First slots of `contents`: known digests, zeros elsewhere; 32 bytes a content. */
  digests: Buffer;
  /** Preamble and compressed header, as received. */
  frames: Buffer;
  state: ImageState;
}

const FILES = ['toc', 'manifest.json', 'config.json', 'contents', 'parts', 'frames', 'state'];

/** Writes a new image's files into `directory`, which must not exist, and fsyncs them. */
export async function writeImage(io: StoreIo, directory: string, image: NewImage): Promise<void> {
  await io.makeDirectory(directory);
  const create = (name: string, data: Uint8Array) => io.createFile(join(directory, name), data);
  const results = await Promise.allSettled([
    create('toc', image.toc),
    create('manifest.json', image.manifest),
    create('config.json', image.config),
    create('contents', image.digests),
    io.createHole(join(directory, 'parts'), image.parts * 32),
    create('frames', image.frames),
    create('state', encodeState(image.state)),
  ]);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
  await io.syncDirectory(directory);
}

function encodeState(state: ImageState): Buffer {
  return Buffer.from(`${JSON.stringify(state)}\n`);
}

/** Reads a `state` file. @throws FirstlightError 'corrupt' */
async function readState(path: string): Promise<ImageState> {
  try {
    return v.parse(STATE, JSON.parse(await readFile(path, 'utf8')));
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== undefined) throw cause;
    throw new FirstlightError('corrupt', `${path} cannot be read as an image's state`, { cause });
  }
}

/** What the head of a `toc` file says, read without the rest. */
export interface TocCounts {
  /** Names in the tree, the root included. */
  rows: number;
  contents: number;
  parts: number;
  /** Bytes of all contents. */
  totalBytes: number;
}

async function readCounts(path: string): Promise<TocCounts> {
  const file = await open(path, 'r');
  try {
    const head = Buffer.alloc(HEADER.bytes);
    const { bytesRead } = await file.read(head, 0, head.length, 0);
    if (bytesRead < head.length) throw new FirstlightError('corrupt', `${path} is cut short`);
    return {
      rows: head.readUInt32LE(HEADER.rows),
      contents: head.readUInt32LE(HEADER.contents),
      parts: head.readUInt32LE(HEADER.parts),
      totalBytes: Number(head.readBigUInt64LE(HEADER.totalBytes)),
    };
  } finally {
    await file.close();
  }
}

/** An image that the store holds, complete or not. */
export class StoredImage {
  readonly digest: string;
  readonly directory: string;
  readonly counts: TocCounts;
  readonly #io: StoreIo;
  #state: ImageState;

  private constructor(
    io: StoreIo,
    digest: string,
    directory: string,
    counts: TocCounts,
    state: ImageState,
  ) {
    this.#io = io;
    this.digest = digest;
    this.directory = directory;
    this.counts = counts;
    this.#state = state;
  }

  /**
   * Opens the image of a directory.
   * @throws FirstlightError 'corrupt' where a file is missing or `state` cannot be read
   */
  static async load(io: StoreIo, digest: string, directory: string): Promise<StoredImage> {
    for (const name of FILES) {
      const file = await open(join(directory, name), 'r').catch((cause: NodeJS.ErrnoException) => {
        if (cause.code !== 'ENOENT') throw cause;
        throw new FirstlightError('corrupt', `${directory} has no ${name}`, { cause });
      });
      await file.close();
    }
    const counts = await readCounts(join(directory, 'toc'));
    const state = await readState(join(directory, 'state'));
    return new StoredImage(io, digest, directory, counts, state);
  }

  get state(): Readonly<ImageState> {
    return this.#state;
  }

  get complete(): boolean {
    return this.#state.complete;
  }

  /** Absolute path of one of the image's files. */
  path(name: 'toc' | 'manifest.json' | 'config.json' | 'contents' | 'parts' | 'frames'): string {
    return join(this.directory, name);
  }

  /** Reads one of the image's files whole. */
  read(name: 'toc' | 'manifest.json' | 'config.json' | 'contents' | 'parts' | 'frames') {
    return readFile(this.path(name));
  }

  /** Replaces the `state` file; durable when it resolves. */
  async setState(change: Partial<ImageState>): Promise<void> {
    const next = { ...this.#state, ...change };
    await replaceFile(this.#io, join(this.directory, 'state'), encodeState(next));
    this.#state = next;
  }

  /**
   * Says that every content is here: the caller has made them durable. Their slots are made so
   * before, since a slot that was lost would leave the image with a file that nobody can read.
   */
  async setComplete(): Promise<void> {
    await this.#io.syncFile(this.path('contents'));
    await this.setState({ complete: true });
  }

  /** Takes another bundle of the same image as the place to fetch from. */
  async setBundle(frames: Buffer, from: Pick<ImageState, 'server' | 'bundlePath' | 'etag'>) {
    // Between the two replacements `state` names the old bundle: its path fails, or answers with an
    // entity tag that the frames' own preamble does not have, and the bundle is asked for anew.
    await replaceFile(this.#io, this.path('frames'), frames);
    await this.setState(from);
  }

  /** Opens the slots of `contents` for writing. */
  openDigests(): Promise<SlotFile> {
    return SlotFile.open(this.#io, this.path('contents'));
  }

  /** Opens the slots of `parts` for writing. */
  openParts(): Promise<SlotFile> {
    return SlotFile.open(this.#io, this.path('parts'));
  }
}

/** Slots closer than this are written in one go, with what stands between them. */
const SLOT_GAP = 128;

/** A file of 32-byte slots, kept in memory as well. Slots only ever go from zeros to a digest or to another digest. */
export class SlotFile {
  readonly #io: StoreIo;
  readonly #file: FileHandle;
  /** All slots. Whoever changes it writes the change with `write`. */
  readonly slots: Buffer;

  private constructor(io: StoreIo, file: FileHandle, slots: Buffer) {
    this.#io = io;
    this.#file = file;
    this.slots = slots;
  }

  static async open(io: StoreIo, path: string): Promise<SlotFile> {
    const file = await open(path, 'r+');
    try {
      return new SlotFile(io, file, await file.readFile());
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Copies 32 bytes into slot `index`, in memory only. */
  set(index: number, digest: Buffer): void {
    digest.copy(this.slots, index * 32, 0, 32);
  }

  /** Writes the named slots to the file. */
  async write(indexes: number[]): Promise<void> {
    const sorted = [...indexes].sort((a, b) => a - b);
    let from = 0;
    while (from < sorted.length) {
      let to = from;
      while (to + 1 < sorted.length && sorted[to + 1]! - sorted[to]! <= SLOT_GAP) to++;
      const start = sorted[from]! * 32;
      await this.#io.writeAt(this.#file, this.slots.subarray(start, sorted[to]! * 32 + 32), start);
      from = to + 1;
    }
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}
