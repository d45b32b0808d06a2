// The encoder's base contents: which of them stand behind what travels, whether they are whole, and their
// bytes. What does not live here: the choice itself (patch-plan.ts), and planning and writing frames
// (bundle-encode.ts).
import { createHash } from 'node:crypto';
import type { EncodeBase, EncodeInput } from './bundle-encode.ts';
import { damaged } from './frame.ts';
import { DIGEST_BYTES } from './frame-plan.ts';
import { findOldContents, type OldContent } from './patch-plan.ts';
import { type BaseRange, measureRanges, readBaseBytes } from './patch-table.ts';
import { PART_BYTES } from './toc-layout.ts';

/** Contents that bases have, and the images that are needed for them. */
export interface Have {
  base: Int32Array;
  content: Uint32Array;
  used: EncodeBase[];
  /** What contents that travel are patched against; `base` counts in `used`. */
  olds: ReadonlyMap<number, OldContent>;
}

/** A content of a base that is not what its digest says, or is gone. */
export interface DamagedOld {
  /** Manifest digest, `sha256:...`. */
  base: string;
  /** Hex digest. */
  content: string;
}

/**
 * Finds what contents that travel can be patched against, in the bases that give most first. One that is damaged here
 * is left out: a patch against it would fit nobody's. The worker's own are checked by what comes out.
 * @returns those that are damaged, each once
 */
export async function findOlds(input: EncodeInput, have: Have): Promise<DamagedOld[]> {
  const { toc, bases } = input;
  const given = have.used.map(() => 0);
  const missing: number[] = [];
  for (let c = 0; c < toc.contents; c++) {
    if (have.base[c]! < 0) missing.push(c);
    else given[have.base[c]!]! += 1;
  }
  const places = bases
    .map((base, index) => ({ toc: base.toc, index, used: have.used.indexOf(base) }))
    .sort((a, b) => (given[b.used] ?? 0) - (given[a.used] ?? 0) || a.index - b.index);
  const olds = new Map<number, OldContent>();
  const whole = new Map<string, boolean>();
  const lost: DamagedOld[] = [];
  for (const [content, old] of findOldContents(toc, missing, places)) {
    const base = bases[old.base]!;
    const digest = digestOf(base, old.content);
    const hex = digest.toString('hex');
    let isWhole = whole.get(hex);
    if (isWhole === undefined) {
      isWhole = await checkOld(input, digest, old.bytes);
      whole.set(hex, isWhole);
      if (!isWhole) lost.push({ base: base.digest, content: hex });
    }
    if (!isWhole) continue;
    let at = have.used.indexOf(base);
    if (at < 0) at = have.used.push(base) - 1;
    olds.set(content, { ...old, base: at });
  }
  have.olds = olds;
  return lost;
}

function digestOf(base: EncodeBase, content: number): Buffer {
  return base.digests.subarray(content * DIGEST_BYTES, (content + 1) * DIGEST_BYTES);
}

/** What reading a content that is gone, or stands on bad blocks, fails with. */
const LOST = ['ENOENT', 'EIO'];

/** True where the content is what its digest says; false where it is damaged or gone. */
async function checkOld(input: EncodeInput, digest: Buffer, bytes: number): Promise<boolean> {
  const hex = digest.toString('hex');
  const hash = createHash('sha256');
  for (let at = 0; at < bytes; at += PART_BYTES) {
    input.signal?.throwIfAborted();
    try {
      hash.update(await input.readContent(hex, at, Math.min(PART_BYTES, bytes - at)));
    } catch (error) {
      if (LOST.includes((error as NodeJS.ErrnoException).code ?? '')) return false;
      throw error;
    }
  }
  return hash.digest().equals(digest);
}

/** Reads what a patch is coded against. */
export function readBases(
  input: EncodeInput,
  have: Have,
  ranges: readonly BaseRange[],
  field: string,
): Promise<Buffer> {
  const sizeOf = ({ base, content }: BaseRange) => have.used[base]!.toc.contentSize(content);
  return readBaseBytes(ranges, measureRanges(ranges, sizeOf, field), async (range, into) => {
    const digest = digestOf(have.used[range.base]!, range.content);
    const data = await input.readContent(digest.toString('hex'), range.offset, into.length);
    if (data.length !== into.length) throw damaged(digest, 'is shorter than it was');
    into.set(data);
  });
}
