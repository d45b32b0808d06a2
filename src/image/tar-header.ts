// One 512-byte tar header block, and the numbers in it: V7, ustar (POSIX.1-1988), GNU and star.
// Pax records are tar-pax.ts, sparse maps tar-sparse.ts, their interplay tar.ts.
import { FirstlightError } from '../errors/errors.ts';

export const BLOCK = 512;

/** The fields of a header block as they stand; names are byte strings. */
export interface TarHeader {
  name: string;
  mode: number;
  uid: number;
  gid: number;
  /** Bytes that follow in the archive. */
  size: number;
  mtime: number;
  /** Type flag as a character; NUL is given as '0'. */
  flag: string;
  linkname: string;
  devmajor: number;
  devminor: number;
  /** The block itself, for what only some formats have. */
  block: Buffer;
}

const OLD_GNU = 'ustar  ';
const USTAR = 'ustar\0';

/** The error for an archive that cannot be read. */
export function badTar(why: string): FirstlightError {
  return new FirstlightError('corrupt', `bad tar archive: ${why}`, {
    hint: 'the file is damaged, or no tar archive; build it again',
  });
}

/** Bytes up to the first NUL, as a byte string. */
export function cString(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString('latin1', 0, end < 0 ? bytes.length : end);
}

/**
 * A numeric field: octal digits with blanks or NULs around them, or GNU's base-256 (high bit of the
 * first byte set; the rest of the field is a two's complement number).
 */
export function tarNumber(block: Buffer, offset: number, length: number, field: string): number {
  const bytes = block.subarray(offset, offset + length);
  if ((bytes[0]! & 0x80) !== 0) {
    // Bit 6 of the first byte is the sign.
    let value = BigInt(bytes[0]! & 0x7f);
    if ((bytes[0]! & 0x40) !== 0) value -= 0x80n;
    for (let i = 1; i < bytes.length; i++) value = value * 256n + BigInt(bytes[i]!);
    const number = Number(value);
    if (!Number.isSafeInteger(number)) throw badTar(`${field} does not fit 53 bits`);
    return number;
  }
  const text = bytes
    .toString('latin1')
    .replace(/^[ \0]+/, '')
    .replace(/[ \0].*$/s, '');
  if (text === '') return 0;
  if (!/^[0-7]+$/.test(text)) throw badTar(`${field} is not octal`);
  return Number.parseInt(text, 8);
}

function sumOf(block: Buffer): { unsigned: number; signed: number } {
  let unsigned = 0;
  let negative = 0;
  for (let i = 0; i < BLOCK; i++) {
    // The checksum field itself counts as blanks.
    const byte = i >= 148 && i < 156 ? 0x20 : block[i]!;
    unsigned += byte;
    if (byte > 127) negative++;
  }
  return { unsigned, signed: unsigned - 256 * negative };
}

/** Whether a block is all zeros: two of them end an archive. */
export function isZeroBlock(block: Buffer): boolean {
  for (let i = 0; i < block.length; i += 1) if (block[i] !== 0) return false;
  return true;
}

/**
 * Decodes a header block that is not all zeros.
 * @throws FirstlightError `corrupt`
 */
export function decodeHeader(block: Buffer): TarHeader {
  const wanted = tarNumber(block, 148, 8, 'the checksum');
  const { unsigned, signed } = sumOf(block);
  // Some old writers summed signed characters.
  if (wanted !== unsigned && wanted !== signed) throw badTar('a header has a wrong checksum');
  let name = cString(block.subarray(0, 100));
  const magic = block.toString('latin1', 257, 263);
  if (magic === USTAR) {
    // star keeps times behind a shorter prefix, and says so at the block's end.
    const star = block.toString('latin1', 508, 512) === 'tar\0';
    const prefix = cString(block.subarray(345, star ? 345 + 131 : 500));
    if (prefix !== '') name = `${prefix}/${name}`;
  }
  const known = magic === USTAR || block.toString('latin1', 257, 264) === OLD_GNU;
  const size = tarNumber(block, 124, 12, 'the size');
  if (size < 0) throw badTar(`'${name}' has a negative size`);
  const flag = block[156] === 0 ? '0' : String.fromCharCode(block[156]!);
  return {
    name,
    mode: tarNumber(block, 100, 8, 'the mode') & 0o7777,
    uid: tarNumber(block, 108, 8, 'the uid'),
    gid: tarNumber(block, 116, 8, 'the gid'),
    size,
    mtime: tarNumber(block, 136, 12, 'the mtime'),
    flag,
    linkname: cString(block.subarray(157, 257)),
    // V7 headers end before these fields, and some writers leave dirt there on plain files.
    devmajor: known && '34'.includes(flag) ? tarNumber(block, 329, 8, 'the major number') : 0,
    devminor: known && '34'.includes(flag) ? tarNumber(block, 337, 8, 'the minor number') : 0,
    block,
  };
}
