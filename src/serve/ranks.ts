// An order as it is kept in the catalog: ranks of contents and parts in 12 bytes each, named by their
// digest. What makes it of traces is trace-worker.ts; what it does to a bundle is delta/order.ts.
import { createHash } from 'node:crypto';
import type { Rank } from '../delta/order.ts';
import { FirstlightError } from '../errors/errors.ts';

const RANK_BYTES = 12;
/** In place of a part: the rank is that of the whole content. */
const WHOLE = 0xffffffff;

/** Packs ranks in the order they are given; their `rank` is their place in it. */
export function packRanks(ranks: readonly Omit<Rank, 'rank'>[]): Buffer {
  const bytes = Buffer.alloc(ranks.length * RANK_BYTES);
  for (const [rank, { content, part }] of ranks.entries()) {
    bytes.writeUInt32LE(content, rank * RANK_BYTES);
    bytes.writeUInt32LE(part ?? WHOLE, rank * RANK_BYTES + 4);
    bytes.writeUInt32LE(rank, rank * RANK_BYTES + 8);
  }
  return bytes;
}

/** Reads what {@link packRanks} wrote. @throws 'corrupt' */
export function unpackRanks(packed: Uint8Array): Rank[] {
  if (packed.length % RANK_BYTES !== 0) throw new FirstlightError('corrupt', 'an order is torn');
  const bytes = Buffer.from(packed.buffer, packed.byteOffset, packed.length);
  const ranks: Rank[] = [];
  for (let at = 0; at < bytes.length; at += RANK_BYTES) {
    const part = bytes.readUInt32LE(at + 4);
    ranks.push({
      content: bytes.readUInt32LE(at),
      ...(part === WHOLE ? {} : { part }),
      rank: bytes.readUInt32LE(at + 8),
    });
  }
  return ranks;
}

/** Names an order by what it does to a bundle: equal for equal ranks, whatever traces they come from. */
export function ranksVersion(packed: Uint8Array): string {
  return createHash('sha256').update(packed).digest('hex').slice(0, 32);
}
