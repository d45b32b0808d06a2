// Sparse files in tar: the maps of GNU's old format (type S) and of its pax formats 0.0, 0.1 and
// 1.0, and the reading of a stored body as the file it stands for.
import type { ByteReader } from './byte-reader.ts';
import { FILE_BYTES_MAX, SPARSE_PIECES_MAX } from './limits.ts';
import { BLOCK, badTar, tarNumber } from './tar-header.ts';
import { type PaxRecord, paxInteger } from './tar-pax.ts';

/** Data at `offset` of the file, `bytes` long; holes are what no piece covers. */
export interface Piece {
  offset: number;
  bytes: number;
}

/** Checks a map against the file's size and the stored bytes it has to use up. */
export function checkMap(map: Piece[], size: number, stored: number, name: string): Piece[] {
  let end = 0;
  let sum = 0;
  for (const { offset, bytes } of map) {
    if (offset < end || bytes < 0 || offset + bytes > size) {
      throw badTar(`the sparse map of '${name}' is out of order or past its end`);
    }
    end = offset + bytes;
    sum += bytes;
  }
  if (sum !== stored) {
    throw badTar(`the sparse map of '${name}' covers ${sum} bytes, and ${stored} are stored`);
  }
  return map.filter((piece) => piece.bytes > 0);
}

function addPiece(map: Piece[], offset: number, bytes: number): void {
  if (map.length >= SPARSE_PIECES_MAX) throw badTar('a sparse map has too many pieces');
  map.push({ offset, bytes });
}

/** Up to `count` pieces of 12-byte octal pairs from `at`; an empty pair ends the list. */
function pairs(block: Buffer, at: number, count: number, map: Piece[]): void {
  for (let i = 0; i < count; i++) {
    const start = at + i * 24;
    if (block[start] === 0) return;
    addPiece(
      map,
      tarNumber(block, start, 12, 'a sparse offset'),
      tarNumber(block, start + 12, 12, 'a sparse length'),
    );
  }
}

/** Reads the map of an old GNU sparse entry: 4 pieces in the header, 21 in each further block. */
export async function oldGnuMap(
  block: Buffer,
  reader: ByteReader,
): Promise<{ size: number; map: Piece[] }> {
  const map: Piece[] = [];
  const size = tarNumber(block, 483, 12, 'the real size');
  pairs(block, 386, 4, map);
  let more = block[482] !== 0;
  while (more) {
    const next = await reader.exactly(BLOCK);
    if (next.length < BLOCK) throw badTar('it ends in the middle of a sparse map');
    pairs(next, 0, 21, map);
    more = next[504] !== 0;
  }
  return { size, map };
}

/** The map of pax formats 0.0 (repeated records) and 0.1 (one list), or undefined where none is. */
export function paxMap(records: PaxRecord[]): Piece[] | undefined {
  const list = records.findLast((record) => record.key === 'GNU.sparse.map');
  const map: Piece[] = [];
  if (list !== undefined) {
    const numbers = list.value.length === 0 ? [] : list.value.toString('latin1').split(',');
    if (numbers.length % 2 !== 0) throw badTar('a sparse map has an odd number of fields');
    for (let i = 0; i < numbers.length; i += 2) {
      addPiece(
        map,
        paxInteger(Buffer.from(numbers[i]!), 'GNU.sparse.map'),
        paxInteger(Buffer.from(numbers[i + 1]!), 'GNU.sparse.map'),
      );
    }
    return map;
  }
  let offset: number | undefined;
  let seen = false;
  for (const { key, value } of records) {
    if (key === 'GNU.sparse.numblocks') seen = true;
    if (key === 'GNU.sparse.offset') offset = paxInteger(value, key);
    if (key !== 'GNU.sparse.numbytes') continue;
    if (offset === undefined) throw badTar('a sparse length has no offset');
    addPiece(map, offset, paxInteger(value, key));
    offset = undefined;
    seen = true;
  }
  return seen ? map : undefined;
}

/** The map of pax format 1.0: decimal lines at the head of the body, padded to a block. */
export async function bodyMap(
  reader: ByteReader,
  stored: number,
): Promise<{ map: Piece[]; stored: number }> {
  const map: Piece[] = [];
  let used = 0;
  let line = '';
  let count: number | undefined;
  let offset: number | undefined;
  while (count === undefined || map.length < count) {
    if (used + BLOCK > stored) throw badTar('a sparse map is longer than its file');
    const block = await reader.exactly(BLOCK);
    if (block.length < BLOCK) throw badTar('it ends in the middle of a sparse map');
    used += BLOCK;
    for (const byte of block) {
      if (count !== undefined && map.length >= count) break;
      if (byte !== 0x0a) {
        line += String.fromCharCode(byte);
        if (line.length > 20) throw badTar('a sparse map is not made of numbers');
        continue;
      }
      const number = paxInteger(Buffer.from(line, 'latin1'), 'sparse map');
      line = '';
      if (count === undefined) {
        if (number < 0 || number > SPARSE_PIECES_MAX) throw badTar('a sparse map has a bad count');
        count = number;
      } else if (offset === undefined) offset = number;
      else {
        addPiece(map, offset, number);
        offset = undefined;
      }
    }
  }
  return { map, stored: stored - used };
}

const ZEROS = Buffer.alloc(64 << 10);

/**
 * The bytes of a file, holes filled with zeros.
 * @param read  gives up to so many of the stored bytes, undefined at the archive's end
 */
export async function* expand(
  map: Piece[],
  size: number,
  read: (limit: number) => Promise<Buffer | undefined>,
): AsyncGenerator<Buffer> {
  let at = 0;
  for (const piece of [...map, { offset: size, bytes: 0 }]) {
    while (at < piece.offset) {
      const zeros = ZEROS.subarray(0, Math.min(ZEROS.length, piece.offset - at));
      at += zeros.length;
      yield zeros;
    }
    const end = piece.offset + piece.bytes;
    while (at < end) {
      const data = await read(end - at);
      if (data === undefined) throw badTar('it ends in the middle of a file');
      at += data.length;
      yield data;
    }
  }
}

/** The real size of a sparse file, checked. */
export function checkSize(size: number, name: string): number {
  if (size < 0) throw badTar(`'${name}' has a negative size`);
  if (size > FILE_BYTES_MAX) throw badTar(`'${name}' is larger than 1 TiB`);
  return size;
}
