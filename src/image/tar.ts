// Reads a tar archive as a sequence of entries, with everything an image layer can hold: byte names,
// pax and GNU extensions, sparse files, 64-bit numbers, nanoseconds, xattrs.
//
// Why not tar-stream, which packs the archives of our tests: it decodes pax values as UTF-8, which
// destroys binary xattrs such as security.capability, keeps one value of a repeated pax key (sparse
// format 0.0 repeats them), does not know type S and so loses its place after a sparse map, and is
// off by one for negative base-256 times. A filter that rewrites all such headers in front of it
// would have to read them all first: that is this file.
//
// What does not live here: what the entries mean for an image (layer.ts).
import { Readable } from 'node:stream';
import type { ByteReader } from './byte-reader.ts';
import { EXTENSION_BYTES_MAX } from './limits.ts';
import { BLOCK, badTar, cString, decodeHeader, isZeroBlock, type TarHeader } from './tar-header.ts';
import { type PaxRecord, parsePax, paxInteger, paxTime, paxXattrs } from './tar-pax.ts';
import {
  bodyMap,
  checkMap,
  checkSize,
  expand,
  oldGnuMap,
  type Piece,
  paxMap,
} from './tar-sparse.ts';

/** What an entry is; `link` is a hard link. */
export type EntryType = 'file' | 'dir' | 'symlink' | 'link' | 'char' | 'block' | 'fifo';

/** One entry. Names and link targets are byte strings as they stand in the archive. */
export interface TarEntry {
  name: string;
  type: EntryType;
  mode: number;
  uid: number;
  gid: number;
  /** Bytes of a file, holes included; 0 for the others. */
  size: number;
  mtimeSec: number;
  mtimeNsec: number;
  linkname: string;
  devmajor: number;
  devminor: number;
  xattrs?: Map<string, Buffer>;
}

const TYPES: Record<string, EntryType> = {
  '0': 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'char',
  '4': 'block',
  '5': 'dir',
  '6': 'fifo',
  '7': 'file', // contiguous, where there are such disks
  D: 'dir', // GNU incremental: a directory with a list of names as its body
  S: 'file', // GNU sparse
};

/** Headers collected for the entry that follows them. */
interface Extensions {
  longName?: string;
  longLink?: string;
  records: PaxRecord[];
}

/** A file's content: pulls from the archive as it is read. Destroying it leaves the archive usable. */
class Body extends Readable {
  readonly #take: () => Buffer | undefined;
  readonly #some: () => Promise<Buffer | undefined>;
  #left: number;

  constructor(
    bytes: number,
    take: () => Buffer | undefined,
    some: () => Promise<Buffer | undefined>,
  ) {
    super();
    this.#left = bytes;
    this.#take = take;
    this.#some = some;
  }

  #deliver(chunk: Buffer): void {
    this.#left -= chunk.length;
    this.push(chunk);
    if (this.#left === 0) this.push(null);
  }

  override _read(): void {
    const chunk = this.#take();
    if (chunk !== undefined) {
      this.#deliver(chunk);
      return;
    }
    this.#some().then(
      (more) => {
        if (this.destroyed) return;
        if (more === undefined) this.destroy(badTar('it ends in the middle of a file'));
        else this.#deliver(more);
      },
      (error: Error) => this.destroy(error),
    );
  }
}

/** Reads entries one after the other; the body of one is readable until the next is asked for. */
export class TarReader {
  readonly #reader: ByteReader;
  readonly #global = new Map<string, Buffer>();
  #serial = 0;
  /** Stored bytes of the present entry that are still to be read, and the padding after them. */
  #stored = 0;
  #padding = 0;
  #pending: Promise<unknown> = Promise.resolve();
  #map: Piece[] | undefined;
  #size = 0;

  constructor(reader: ByteReader) {
    this.#reader = reader;
  }

  /**
   * The next entry, or undefined at the archive's end.
   * @throws FirstlightError `corrupt`
   */
  async next(): Promise<TarEntry | undefined> {
    await this.#leave();
    const extensions: Extensions = { records: [] };
    for (;;) {
      const block = await this.#block();
      if (block === undefined) return undefined;
      const header = decodeHeader(block);
      if (await this.#extension(header, extensions)) continue;
      return this.#entry(header, extensions);
    }
  }

  /** Content of the present entry; at most one reader. */
  body(): Readable {
    const serial = this.#serial;
    if (this.#map !== undefined) {
      const chunks = expand(this.#map, this.#size, (limit) => this.#some(serial, limit));
      return Readable.from(chunks, { objectMode: false });
    }
    return new Body(
      this.#size,
      () => this.#take(serial),
      () => this.#some(serial, BLOCK << 8),
    );
  }

  #take(serial: number): Buffer | undefined {
    if (serial !== this.#serial) return undefined;
    const chunk = this.#reader.take(Math.min(this.#stored, BLOCK << 8));
    if (chunk !== undefined) this.#stored -= chunk.length;
    return chunk;
  }

  #some(serial: number, limit: number): Promise<Buffer | undefined> {
    // A body that outlives its entry gets no bytes of the next one.
    if (serial !== this.#serial || this.#stored === 0) return Promise.resolve(undefined);
    const read = async () => {
      const chunk = await this.#reader.some(Math.min(limit, this.#stored, BLOCK << 8));
      if (chunk !== undefined) this.#stored -= chunk.length;
      return chunk;
    };
    const reading = read();
    // The one who asked hears of an error; here it only matters that the read is over.
    this.#pending = reading.catch(() => undefined);
    return reading;
  }

  /** Passes over what is left of the present entry. */
  async #leave(): Promise<void> {
    await this.#pending;
    this.#serial++;
    const left = this.#stored;
    if (left > 0 && (await this.#reader.skip(left)) < left) {
      throw badTar('it ends in the middle of a file');
    }
    // Padding that is missing at the very end hurts nobody; some tools' layers end like that.
    if (this.#padding > 0) await this.#reader.skip(this.#padding);
    this.#stored = 0;
    this.#padding = 0;
  }

  /** A header block; undefined at the end: two zero blocks, or the end of the bytes. */
  async #block(): Promise<Buffer | undefined> {
    const block = await this.#reader.exactly(BLOCK);
    if (block.length === 0) return undefined;
    if (block.length < BLOCK) throw badTar('it ends in the middle of a header');
    if (!isZeroBlock(block)) return block;
    const second = await this.#reader.exactly(BLOCK);
    if (second.length < BLOCK || isZeroBlock(second)) return undefined;
    throw badTar('a single zero block stands between entries');
  }

  /** Takes in a header that only describes the next entry; false where it is an entry itself. */
  async #extension(header: TarHeader, extensions: Extensions): Promise<boolean> {
    const { flag, size } = header;
    if (flag === 'V' || flag === 'A') {
      // A volume label, a Solaris ACL: nothing for a tree.
      this.#stored = size;
      this.#padding = padding(size);
      await this.#leave();
      return true;
    }
    if (!'gxXLK'.includes(flag)) return false;
    if (size > EXTENSION_BYTES_MAX) throw badTar('an extended header is larger than 8 MiB');
    const data = await this.#reader.exactly(size);
    const pad = padding(size);
    if (data.length < size || (await this.#reader.skip(pad)) < pad) {
      throw badTar('it ends in the middle of an extended header');
    }
    if (flag === 'L') extensions.longName = cString(data);
    else if (flag === 'K') extensions.longLink = cString(data);
    else if (flag === 'g') {
      for (const { key, value } of parsePax(data)) {
        if (value.length === 0) this.#global.delete(key);
        else this.#global.set(key, Buffer.from(value));
      }
    } else extensions.records.push(...parsePax(data));
    return true;
  }

  async #entry(header: TarHeader, extensions: Extensions): Promise<TarEntry> {
    const records = new Map(this.#global);
    for (const { key, value } of extensions.records) records.set(key, value);
    // An empty value takes a record of the global header back, and leaves the block's own field.
    const given = (key: string) => {
      const value = records.get(key);
      return value === undefined || value.length === 0 ? undefined : value;
    };
    const integer = (key: string) => {
      const value = given(key);
      return value === undefined ? undefined : paxInteger(value, key);
    };
    const name = given('GNU.sparse.name') ?? given('path') ?? extensions.longName ?? header.name;
    const text = typeof name === 'string' ? name : name.toString('latin1');
    let type = TYPES[header.flag];
    if (type === undefined) {
      const flag = JSON.stringify(header.flag);
      throw badTar(`'${text}' has the unknown type ${flag}`);
    }
    // V7 had no type for directories; a slash at the end made one.
    if (type === 'file' && header.flag !== 'S' && text.endsWith('/')) type = 'dir';
    const stored = integer('size') ?? header.size;
    if (stored < 0) throw badTar(`'${text}' has a negative size`);
    // Links, devices and the like have no body whatever their size field says; some writers put the
    // size of a hard link's target there.
    const hasBody = type === 'file' || type === 'dir';
    this.#stored = hasBody ? stored : 0;
    this.#padding = hasBody ? padding(stored) : 0;
    this.#map = undefined;
    this.#size = type === 'file' ? checkSize(stored, text) : 0;
    if (type === 'file') await this.#sparse(header, extensions.records, integer, text);

    const time = given('mtime');
    const mtime = time === undefined ? { sec: header.mtime, nsec: 0 } : paxTime(time, 'mtime');
    const link = given('linkpath')?.toString('latin1') ?? extensions.longLink ?? header.linkname;
    const xattrs = paxXattrs(records);
    return {
      name: text,
      type,
      mode: header.mode,
      uid: identity(integer('uid') ?? header.uid, 'uid', text),
      gid: identity(integer('gid') ?? header.gid, 'gid', text),
      size: this.#size,
      mtimeSec: mtime.sec,
      mtimeNsec: mtime.nsec,
      linkname: link,
      devmajor: header.devmajor,
      devminor: header.devminor,
      ...(xattrs === undefined ? {} : { xattrs }),
    };
  }

  /** Reads the map of a sparse file, in whichever format it has one. */
  async #sparse(
    header: TarHeader,
    records: PaxRecord[],
    integer: (key: string) => number | undefined,
    name: string,
  ): Promise<void> {
    let map: Piece[] | undefined;
    let size: number | undefined;
    if (header.flag === 'S') {
      ({ map, size } = await oldGnuMap(header.block, this.#reader));
    } else if (integer('GNU.sparse.major') === 1) {
      const body = await bodyMap(this.#reader, this.#stored);
      map = body.map;
      this.#stored = body.stored;
      size = integer('GNU.sparse.realsize');
    } else {
      map = paxMap(records);
      size = integer('GNU.sparse.size') ?? integer('GNU.sparse.realsize');
    }
    if (map === undefined) return;
    this.#size = checkSize(size ?? 0, name);
    this.#map = checkMap(map, this.#size, this.#stored, name);
  }
}

function padding(bytes: number): number {
  return (BLOCK - (bytes % BLOCK)) % BLOCK;
}

function identity(id: number, field: string, name: string): number {
  if (id < 0 || id > 0xffffffff) throw badTar(`'${name}' has the impossible ${field} ${id}`);
  return id;
}
