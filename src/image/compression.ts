// From a layer's blob as stored to the bytes of its tar. The magic number decides, as in containerd:
// media types in the wild are not to be trusted.
import { pipeline, type Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { DecompressStream } from 'zstd-napi';
import { FirstlightError } from '../errors/errors.ts';
import { zstdBlocks } from './zstd-blocks.ts';

export type Compression = 'none' | 'gzip' | 'zstd';

/** Bytes that {@link sniff} wants to see. */
export const SNIFF_BYTES = 6;

/** How a blob that begins with `head` is compressed; throws `unsupported` for what we do not read. */
export function sniff(head: Buffer, what: string): Compression {
  if (head.length >= 3 && head[0] === 0x1f && head[1] === 0x8b && head[2] === 8) return 'gzip';
  if (head.length >= 4) {
    const magic = head.readUInt32LE(0);
    // A frame, or a skippable frame before it (zstd's RFC 8878, sections 3.1.1 and 3.1.2).
    if (magic === 0xfd2fb528 || (magic & 0xfffffff0) >>> 0 === 0x184d2a50) return 'zstd';
  }
  const other =
    head.toString('latin1', 0, 3) === 'BZh'
      ? 'bzip2'
      : head.toString('latin1', 0, 6) === '\xfd7zXZ\0'
        ? 'xz'
        : undefined;
  if (other === undefined) return 'none';
  throw new FirstlightError('unsupported', `${what} is compressed with ${other}`, {
    hint: 'compress it with gzip or zstd, or leave it plain',
  });
}

/** The first bytes of a source, and the source as if they had not been read. */
async function peek(
  source: AsyncIterable<Buffer>,
  bytes: number,
): Promise<{ head: Buffer; whole: AsyncGenerator<Buffer> }> {
  const iterator = source[Symbol.asyncIterator]();
  const parts: Buffer[] = [];
  let have = 0;
  while (have < bytes) {
    const { value, done } = await iterator.next();
    if (done === true) break;
    parts.push(value);
    have += value.length;
  }
  async function* whole(): AsyncGenerator<Buffer> {
    try {
      yield* parts;
      for (;;) {
        const { value, done } = await iterator.next();
        if (done === true) return;
        yield value;
      }
    } finally {
      await iterator.return?.();
    }
  }
  return { head: Buffer.concat(parts).subarray(0, bytes), whole: whole() };
}

/** An error of the decoder as `corrupt`; those of the source stay what they are. */
function unpackError(error: unknown, what: string): unknown {
  if (error instanceof FirstlightError) return error;
  const code = (error as NodeJS.ErrnoException).code ?? '';
  const name = (error as Error).name;
  if ((error as NodeJS.ErrnoException).syscall !== undefined || name === 'AbortError') return error;
  if (code !== '' && !code.startsWith('Z_')) return error;
  const why = (error as Error).message;
  return new FirstlightError('corrupt', `${what} cannot be unpacked: ${why}`, {
    hint: 'the source is damaged; fetch or build the image again',
    cause: error,
  });
}

async function* unpacked(stream: Readable, what: string): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of stream) yield chunk as Buffer;
  } catch (error) {
    throw unpackError(error, what);
  }
}

/**
 * Uncompressed bytes of a blob. Reads the blob to its end, so that its own check comes to pass.
 * @param what  names the blob in errors
 */
export async function decompress(
  blob: AsyncIterable<Buffer>,
  what: string,
): Promise<{ bytes: AsyncGenerator<Buffer>; compression: Compression }> {
  const { head, whole } = await peek(blob, SNIFF_BYTES);
  const compression = sniff(head, what);
  if (compression === 'none') return { bytes: whole, compression };
  // zstd-napi and not node:zlib: the latter stops after the first frame and takes the rest for read
  // (Node 24), and layers made of several frames, some skippable, are common (zstd:chunked).
  const decoder =
    compression === 'gzip' ? createGunzip({ chunkSize: 256 << 10 }) : new DecompressStream();
  const input = compression === 'gzip' ? whole : zstdBlocks(whole);
  // Errors of either end come out of the decoder, where `unpacked` takes them up.
  pipeline(input, decoder, () => undefined);
  return { bytes: unpacked(decoder, what), compression };
}
