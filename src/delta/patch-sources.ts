// The encoder's base contents: which of them stand behind what travels, that they are whole, and their
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

/** Finds what contents that travel can be patched against, in the bases that give most first. */
export function findOlds(input: EncodeInput, have: Have): void {
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
  for (const [content, old] of findOldContents(toc, missing, places)) {
    const base = bases[old.base]!;
    let at = have.used.indexOf(base);
    if (at < 0) at = have.used.push(base) - 1;
    olds.set(content, { ...old, base: at });
  }
  have.olds = olds;
}

/**
 * Refuses a base content that is damaged here: a patch against it would fit nobody's. The worker's own
 * are checked by what comes out.
 */
export async function checkOlds(input: EncodeInput, have: Have): Promise<void> {
  const checked = new Set<string>();
  for (const { base, content, bytes } of have.olds.values()) {
    const { digests } = have.used[base]!;
    const digest = digests.subarray(content * DIGEST_BYTES, (content + 1) * DIGEST_BYTES);
    const hex = digest.toString('hex');
    if (checked.has(hex)) continue;
    checked.add(hex);
    const hash = createHash('sha256');
    for (let at = 0; at < bytes; at += PART_BYTES) {
      input.signal?.throwIfAborted();
      hash.update(await input.readContent(hex, at, Math.min(PART_BYTES, bytes - at)));
    }
    if (!hash.digest().equals(digest)) throw damaged(digest, 'is not what its digest says');
  }
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
    const { digests } = have.used[range.base]!;
    const at = range.content * DIGEST_BYTES;
    const digest = digests.subarray(at, at + DIGEST_BYTES);
    const data = await input.readContent(digest.toString('hex'), range.offset, into.length);
    if (data.length !== into.length) throw damaged(digest, 'is shorter than it was');
    into.set(data);
  });
}
