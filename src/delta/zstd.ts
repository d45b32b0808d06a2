// Single zstd frames with a declared size: the one way in which bundles compress. A frame is looked
// at before memory is given to it, so a small one cannot inflate to more than was agreed.

import zstdBinding from 'zstd-napi/binding.js';
import { FirstlightError } from '../errors/errors.ts';

const { CCtx, compressBound, CParameter, DCtx } = zstdBinding;

/**
 * zstd level of frames where nothing else is asked for. Measured on a Debian image with redis and
 * python (209 MB), two threads: level 9 67.9 MB in 2.6 s, 12 67.6 MB in 3.3 s, 15 67.1 MB in 10.4 s,
 * 19 62.1 MB in 43.6 s.
 */
export const DEFAULT_LEVEL = 12;

const ZSTD_MAGIC = 0xfd2fb528;

/** Compresses many buffers at one level, one after another. */
export class Compressor {
  readonly #context = new CCtx();

  /** @param level  zstd's own, 1 to 22 */
  constructor(level: number) {
    this.#context.setParameter(CParameter.compressionLevel, level);
    // The content size is always declared; frames carry no checksum, since their sha256 is known.
    this.#context.setParameter(CParameter.contentSizeFlag, 1);
    this.#context.setParameter(CParameter.checksumFlag, 0);
  }

  /** One zstd frame that holds `bytes`. */
  compress(bytes: Uint8Array): Buffer {
    const room = Buffer.allocUnsafeSlow(compressBound(bytes.length));
    return cut(room, this.#context.compress2(room, bytes));
  }
}

/** The first `length` bytes in memory of their own. */
function cut(room: Buffer, length: number): Buffer {
  const frame = Buffer.allocUnsafeSlow(length);
  room.copy(frame, 0, 0, length);
  return frame;
}

/** One for each thread: at level 19 it has some 100 MB, which wait for a collection of garbage otherwise. */
let patchContext: InstanceType<typeof CCtx> | undefined;

/**
 * One zstd frame that holds `bytes`, coded against `base` (raw content, whatever it begins with:
 * see PATCH_PAD_BYTES). It declares its content size, and no dictionary.
 */
export function compressAgainst(bytes: Uint8Array, base: Uint8Array, level: number): Buffer {
  const room = Buffer.allocUnsafeSlow(compressBound(bytes.length));
  patchContext ??= new CCtx();
  return cut(room, patchContext.compressUsingDict(room, bytes, base, level));
}

/** Content size that a zstd frame declares (RFC 8878, 3.1.1.1), or undefined where it has none. */
function declaredBytes(frame: Buffer): number | undefined {
  if (frame.length < 6 || frame.readUInt32LE(0) !== ZSTD_MAGIC) return undefined;
  const descriptor = frame[4]!;
  const singleSegment = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >> 6;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  // Bit 3 is reserved, and no dictionary is ever named.
  if ((descriptor & 0x08) !== 0 || dictionaryBytes !== 0) return undefined;
  const at = 5 + (singleSegment ? 0 : 1);
  const sizeBytes = sizeFlag === 0 ? (singleSegment ? 1 : 0) : 1 << sizeFlag;
  if (sizeBytes === 0 || frame.length < at + sizeBytes) return undefined;
  if (sizeBytes === 1) return frame[at]!;
  if (sizeBytes === 2) return frame.readUInt16LE(at) + 256;
  if (sizeBytes === 4) return frame.readUInt32LE(at);
  return Number(frame.readBigUInt64LE(at));
}

let context: InstanceType<typeof DCtx> | undefined;

/**
 * Decompresses one zstd frame that must hold exactly `rawBytes` bytes, into memory of its own.
 * @param field  what the bytes are, for errors
 * @param base   what the frame is coded against, if anything; it is read where it stands
 */
export function decompressExactly(
  frame: Buffer,
  rawBytes: number,
  field: string,
  base?: Uint8Array,
): Buffer {
  const declared = declaredBytes(frame);
  if (declared === undefined)
    throw new FirstlightError('corrupt', `${field}: no zstd frame with a declared size`);
  if (declared !== rawBytes)
    throw new FirstlightError(
      'corrupt',
      `${field}: inflates to ${declared} bytes, not ${rawBytes}`,
    );
  const raw = Buffer.allocUnsafeSlow(rawBytes);
  context ??= new DCtx();
  let length: number;
  try {
    // The destination's size is the cap: zstd stops with an error where the data would pass it, also
    // when further frames follow the first.
    length =
      base === undefined
        ? context.decompress(raw, frame)
        : context.decompressUsingDict(raw, frame, base);
  } catch (cause) {
    throw new FirstlightError('corrupt', `${field}: zstd: ${(cause as Error).message}`, { cause });
  }
  if (length !== rawBytes)
    throw new FirstlightError('corrupt', `${field}: ${length} bytes after zstd, not ${rawBytes}`);
  return raw;
}
