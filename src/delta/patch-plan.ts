// Which older content each content that travels is patched against, and which bytes of it stand
// behind each frame: the encoder's choice, which a decoder only follows. The same images give the
// same choice. What does not live here: whether the patch is worth it (frame.ts).
import { type BaseRange, PATCH_BASE_MAX_BYTES, PATCH_RANGES_MAX } from './patch-table.ts';
import type { Toc } from './toc.ts';
import { PART_BYTES } from './toc-layout.ts';

/**
 * Bytes of one old content that stand behind a part of the new one: all of it up to this size, else
 * what lies around the same place. More finds little more, and has to be read for every part.
 */
const WINDOW_BYTES = 4 << 20;
/** Bytes of the window before the place of the part. */
const WINDOW_BEFORE_BYTES = 3 << 19;
/** Most bytes behind one frame: together with the frame less than the window of zstd's level 19. */
const FRAME_BASE_BYTES = PATCH_BASE_MAX_BYTES - (2 << 20);

/** A content of a base image that is like one of the new image. */
export interface OldContent {
  /** Index in the list of bases. */
  base: number;
  /** Index in the base's TOC, and bytes. */
  content: number;
  bytes: number;
}

/** A path with every run of digits made one: what two versions of a file have in common. */
function withoutNumbers(path: string): string {
  return path.replace(/[0-9]+/g, '0');
}

/** Contents of a base by path, and by path without numbers. */
class BasePaths {
  readonly #toc: Toc;
  readonly #base: number;
  /** Made when it is asked for first: most files keep their path. */
  #alike: Map<string, number[]> | undefined;

  constructor(toc: Toc, base: number) {
    this.#toc = toc;
    this.#base = base;
  }

  #old(content: number): OldContent {
    return { base: this.#base, content, bytes: this.#toc.contentSize(content) };
  }

  same(path: string): OldContent | undefined {
    const row = this.#toc.resolve(path);
    const content = row < 0 ? -1 : this.#toc.content(row);
    return content < 0 ? undefined : this.#old(content);
  }

  /** Of several, the one whose size is nearest (of two, the smaller); of those, the first in the tree. */
  alike(path: string, bytes: number): OldContent | undefined {
    this.#alike ??= this.#index();
    const contents = this.#alike.get(withoutNumbers(path));
    if (contents === undefined) return undefined;
    const larger = this.#firstOf(contents, bytes);
    const size = (at: number) => this.#toc.contentSize(contents[at]!);
    if (larger === 0) return this.#old(contents[0]!);
    const isLarger = larger < contents.length && size(larger) - bytes < bytes - size(larger - 1);
    const at = isLarger ? larger : this.#firstOf(contents, size(larger - 1));
    return this.#old(contents[at]!);
  }

  /** Index of the first content of at least so many bytes. */
  #firstOf(contents: readonly number[], bytes: number): number {
    let from = 0;
    let to = contents.length;
    while (from < to) {
      const middle = (from + to) >>> 1;
      if (this.#toc.contentSize(contents[middle]!) < bytes) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  /** By size, since thousands may share a name: pictures that are numbered, say. */
  #index(): Map<string, number[]> {
    const toc = this.#toc;
    const found = new Map<string, number[]>();
    for (let row = 1; row < toc.rows; row++) {
      const content = toc.content(row);
      if (content < 0) continue;
      const path = toc.path(row);
      const name = withoutNumbers(path);
      if (name === path) continue;
      const others = found.get(name);
      if (others === undefined) found.set(name, [content]);
      else others.push(content);
    }
    const size = (content: number) => toc.contentSize(content);
    for (const contents of found.values()) contents.sort((a, b) => size(a) - size(b));
    return found;
  }
}

/**
 * The old content that each new one is most like, by the path of the first file that has it: the
 * same path in the first base that has it, else the same path but for its numbers.
 * @param missing  contents that travel
 * @param bases    those most like the image first
 */
export function findOldContents(
  toc: Toc,
  missing: readonly number[],
  bases: readonly { toc: Toc; index: number }[],
): Map<number, OldContent> {
  const paths = bases.map((base) => new BasePaths(base.toc, base.index));
  const found = new Map<number, OldContent>();
  for (const content of missing) {
    const path = toc.path(toc.firstRow(content));
    const bytes = toc.contentSize(content);
    const first = (look: (base: BasePaths) => OldContent | undefined) => {
      for (const base of paths) {
        const old = look(base);
        if (old !== undefined) return old;
      }
      return undefined;
    };
    const old = first((base) => base.same(path)) ?? first((base) => base.alike(path, bytes));
    if (old !== undefined) found.set(content, old);
  }
  return found;
}

/** The bytes of an old content that stand behind one part of a new one. */
function rangeFor(toc: Toc, content: number, index: number, old: OldContent): BaseRange {
  const { base, content: oldContent, bytes } = old;
  if (bytes <= WINDOW_BYTES) return { base, content: oldContent, offset: 0, bytes: undefined };
  // Where the part would begin if the content had grown evenly.
  const place = Math.floor((index * PART_BYTES * bytes) / toc.contentSize(content));
  const from = Math.max(0, Math.min(place - WINDOW_BEFORE_BYTES, bytes - WINDOW_BYTES));
  return { base, content: oldContent, offset: from, bytes: WINDOW_BYTES };
}

/**
 * The ranges that stand behind a frame of these parts, each once; none where nothing is like them.
 * @param parts  content and index within it, in the frame's order
 */
export function rangesFor(
  toc: Toc,
  parts: readonly { content: number; index: number }[],
  olds: ReadonlyMap<number, OldContent>,
): BaseRange[] {
  const ranges: BaseRange[] = [];
  const taken = new Set<string>();
  let sum = 0;
  for (const { content, index } of parts) {
    const old = olds.get(content);
    if (old === undefined) continue;
    const range = rangeFor(toc, content, index, old);
    const key = `${range.base} ${range.content} ${range.offset}`;
    const bytes = range.bytes ?? old.bytes;
    if (taken.has(key) || sum + bytes > FRAME_BASE_BYTES) continue;
    if (ranges.length === PATCH_RANGES_MAX) break;
    taken.add(key);
    sum += bytes;
    ranges.push(range);
  }
  return ranges;
}
