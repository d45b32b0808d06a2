// Files by relative path: of a directory, or of an uncompressed tar that is read in place. An archive
// is indexed once by its headers, skipping over bodies; contents are then read at their offsets.
import { type EventEmitter, setMaxListeners } from 'node:events';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { EXTENSION_BYTES_MAX } from './limits.ts';
import { BLOCK, badTar, cString, decodeHeader, isZeroBlock } from './tar-header.ts';
import { parsePax, paxInteger } from './tar-pax.ts';

/** Read access to a set of files. */
export interface Files {
  /** Bytes of a file, or undefined where there is none. */
  size(path: string): Promise<number | undefined>;
  /** A small file as a whole; `corrupt` where it is larger than `limit` bytes. */
  read(path: string, limit: number, what: string): Promise<Buffer>;
  /** A file as a stream. */
  open(path: string, what: string): Promise<Readable>;
  close(): Promise<void>;
}

function missing(path: string, what: string, cause?: unknown): FirstlightError {
  return new FirstlightError('not-found', `${what}: ${path} is missing`, {
    hint: 'the image is incomplete; export it again',
    cause,
  });
}

async function readAll(file: FileHandle, start: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes);
  let done = 0;
  while (done < bytes) {
    const { bytesRead } = await file.read(buffer, done, bytes - done, start + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return buffer.subarray(0, done);
}

const CHUNK = 256 << 10;

/** The files below a directory. */
export function directoryFiles(directory: string): Files {
  const opened = async (path: string, what: string) => {
    try {
      const file = await open(join(directory, path), 'r');
      const { size } = await file.stat();
      return { file, size };
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      if (code === 'ENOENT' || code === 'ENOTDIR') throw missing(path, what, error);
      throw toFirstlightError(error);
    }
  };
  return {
    async size(path) {
      try {
        const { file, size } = await opened(path, directory);
        await file.close();
        return size;
      } catch (error) {
        if (error instanceof FirstlightError && error.kind === 'not-found') return undefined;
        throw error;
      }
    },
    async read(path, limit, what) {
      const { file, size } = await opened(path, what);
      try {
        if (size > limit) throw tooLarge(path, limit, what);
        return await readAll(file, 0, size);
      } finally {
        await file.close();
      }
    },
    async open(path, what) {
      const { file } = await opened(path, what);
      return file.createReadStream({ highWaterMark: CHUNK });
    },
    async close() {},
  };
}

function tooLarge(path: string, limit: number, what: string): FirstlightError {
  return new FirstlightError('corrupt', `${what}: ${path} is larger than ${limit} bytes`);
}

interface Place {
  offset: number;
  bytes: number;
  /** Target path where the entry is a link. */
  link?: string;
}

/** A path in its shortest form, or undefined where it leads out. */
function clean(path: string): string | undefined {
  const names: string[] = [];
  for (const name of path.split('/')) {
    if (name === '' || name === '.') continue;
    if (name !== '..') names.push(name);
    else if (names.pop() === undefined) return undefined;
  }
  return names.join('/');
}

async function indexTar(file: FileHandle): Promise<Map<string, Place>> {
  const { size: end } = await file.stat();
  const places = new Map<string, Place>();
  let at = 0;
  let longName: string | undefined;
  let longLink: string | undefined;
  let pax = new Map<string, Buffer>();
  while (at + BLOCK <= end) {
    const block = await readAll(file, at, BLOCK);
    if (isZeroBlock(block)) break;
    const header = decodeHeader(block);
    const given = pax.get('size');
    const bytes = given === undefined ? header.size : paxInteger(given, 'size');
    const offset = at + BLOCK;
    if (bytes < 0 || offset + bytes > end) throw badTar('it ends in the middle of a file');
    at = offset + bytes + ((BLOCK - (bytes % BLOCK)) % BLOCK);
    if ('LKxg'.includes(header.flag)) {
      if (bytes > EXTENSION_BYTES_MAX) throw badTar('an extended header is larger than 8 MiB');
      const data = await readAll(file, offset, bytes);
      if (header.flag === 'L') longName = cString(data);
      if (header.flag === 'K') longLink = cString(data);
      if (header.flag === 'x') pax = new Map(parsePax(data).map(({ key, value }) => [key, value]));
      continue;
    }
    const name = clean(pax.get('path')?.toString('latin1') ?? longName ?? header.name);
    const target = pax.get('linkpath')?.toString('latin1') ?? longLink ?? header.linkname;
    if (name !== undefined && name !== '') {
      if (header.flag === '0' || header.flag === '7') places.set(name, { offset, bytes });
      else if (header.flag === '1') places.set(name, { offset, bytes: 0, link: target });
      else if (header.flag === '2') {
        const link = `${name.slice(0, name.lastIndexOf('/') + 1)}${target}`;
        places.set(name, { offset, bytes: 0, link: target.startsWith('/') ? target : link });
      }
    }
    longName = undefined;
    longLink = undefined;
    pax = new Map();
  }
  return places;
}

/** The files of an uncompressed tar; takes over `file` and closes it with itself. */
export async function tarFiles(file: FileHandle, close: () => Promise<void>): Promise<Files> {
  // Each stream listens for the end of the file: as many as the image has layers.
  setMaxListeners(0, file as unknown as EventEmitter);
  const places = await indexTar(file);
  const find = (path: string): Place | undefined => {
    let name = clean(path);
    // Layers that an image has twice are links to the first one.
    for (let hops = 0; name !== undefined && hops < 16; hops++) {
      const place = places.get(name);
      if (place?.link === undefined) return place;
      name = clean(place.link);
    }
    return undefined;
  };
  return {
    async size(path) {
      return find(path)?.bytes;
    },
    async read(path, limit, what) {
      const place = find(path);
      if (place === undefined) throw missing(path, what);
      if (place.bytes > limit) throw tooLarge(path, limit, what);
      return readAll(file, place.offset, place.bytes);
    },
    async open(path, what) {
      const place = find(path);
      if (place === undefined) throw missing(path, what);
      const { offset: start, bytes } = place;
      // A stream of a file has no way to say "empty range".
      if (bytes === 0) return emptyStream();
      const end = start + bytes - 1;
      return file.createReadStream({ start, end, highWaterMark: CHUNK, autoClose: false });
    },
    close,
  };
}

function emptyStream(): Readable {
  return Readable.from([]);
}
