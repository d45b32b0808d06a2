// Finds the files of a trace in another version of the image: by path, else by path with version
// numbers replaced, else by content. What an image holds is asked through an interface: this
// module knows no table of contents.
import { TRACE_PART_BYTES, type Tracer } from '../trace/tracer.ts';

/** A regular file of an image. */
export interface ImageFile {
  path: string;
  sizeBytes: number;
  /** sha256 of the content in hex; absent for an empty file. */
  digest?: string;
}

/** What matching asks of an image. */
export interface ImageFiles {
  /** The regular file at a path (byte string, no leading slash). */
  file(path: string): ImageFile | undefined;
  /** All regular files. */
  files(): Iterable<ImageFile>;
  /** Any file with that content. */
  withDigest(digest: string): ImageFile | undefined;
}

/** How a file was found. */
export type Match = 'path' | 'version' | 'content';

/** An image's files from a list, indexed. Of several with one content, the first is kept. */
export function imageFiles(list: Iterable<ImageFile>): ImageFiles {
  const byPath = new Map<string, ImageFile>();
  const byDigest = new Map<string, ImageFile>();
  for (const file of list) {
    byPath.set(file.path, file);
    if (file.digest !== undefined && !byDigest.has(file.digest)) byDigest.set(file.digest, file);
  }
  return {
    file: (path) => byPath.get(path),
    files: () => byPath.values(),
    withDigest: (digest) => byDigest.get(digest),
  };
}

const NUMBER = /\d+(?:\.\d+)*/g;
/** Candidates that are looked at for one path; a directory of numbered files has more. */
const CANDIDATES_MAX = 256;

/** A path with each version number as `#`: libssl.so.1.1 and libssl.so.3 are the same. */
export function versionless(path: string): string {
  return path.replace(NUMBER, '#');
}

/** The numbers of a path, at most 15 digits of each. */
function numbersOf(path: string): number[] {
  return (path.match(/\d+/g) ?? []).map((digits) => Number(digits.slice(0, 15)));
}

/** Which of two candidates has numbers nearer to `wanted`, the first number first. */
function nearer(wanted: number[], x: number[], y: number[]): number {
  for (const [at, number] of wanted.entries()) {
    const [a, b] = [Math.abs((x[at] ?? -1) - number), Math.abs((y[at] ?? -1) - number)];
    if (a !== b) return a - b;
  }
  return x.length - y.length;
}

/** Finds files of one image in another. */
export class Matcher {
  readonly #from: ImageFiles | undefined;
  readonly #to: ImageFiles;
  #versions: Map<string, ImageFile[]> | undefined;

  /** @param from  the traced image, where it is at hand */
  constructor(from: ImageFiles | undefined, to: ImageFiles) {
    this.#from = from;
    this.#to = to;
  }

  /** @param digest  of the traced file's content, where the trace names it */
  find(path: string, digest?: string): { file: ImageFile; how: Match } | undefined {
    const same = this.#to.file(path);
    if (same !== undefined) return { file: same, how: 'path' };
    const version = this.#version(path);
    if (version !== undefined) return { file: version, how: 'version' };
    const content = digest ?? this.#from?.file(path)?.digest;
    const moved = content === undefined ? undefined : this.#to.withDigest(content);
    return moved === undefined ? undefined : { file: moved, how: 'content' };
  }

  /** The file with the same path but for its numbers; a file that both images have is another one. */
  #version(path: string): ImageFile | undefined {
    const key = versionless(path);
    if (key === path) return undefined;
    this.#versions ??= this.#index();
    const wanted = numbersOf(path);
    let best: { file: ImageFile; numbers: number[] } | undefined;
    for (const file of this.#versions.get(key) ?? []) {
      if (this.#from?.file(file.path) !== undefined) continue;
      const numbers = numbersOf(file.path);
      if (best === undefined || nearer(wanted, numbers, best.numbers) < 0) best = { file, numbers };
    }
    return best?.file;
  }

  #index(): Map<string, ImageFile[]> {
    const index = new Map<string, ImageFile[]>();
    for (const file of this.#to.files()) {
      const key = versionless(file.path);
      if (key === file.path) continue;
      const list = index.get(key);
      if (list === undefined) index.set(key, [file]);
      else if (list.length < CANDIDATES_MAX) list.push(file);
    }
    return index;
  }
}

/** How many files of a trace were found, and how. */
export type MatchCounts = Record<Match | 'missing', number>;

/** A run as if it had been one of the image `to`: files that are not found there are left out. */
export function mapTracer(
  tracer: Tracer,
  from: ImageFiles | undefined,
  to: ImageFiles,
): { tracer: Tracer; counts: MatchCounts } {
  const matcher = new Matcher(from, to);
  const counts: MatchCounts = { path: 0, version: 0, content: 0, missing: 0 };
  const seq = tracer.seq.flatMap(({ digest, ranges, ...item }) => {
    const found = matcher.find(item.path, digest);
    counts[found?.how ?? 'missing']++;
    if (found === undefined) return [];
    const { path, sizeBytes } = found.file;
    // Ranges say nothing of a file that is one part here, unless nothing was read of it.
    const keep = ranges !== undefined && (sizeBytes > TRACE_PART_BYTES || ranges.length === 0);
    return [{ ...item, path, sizeBytes, ...(keep ? { ranges } : {}) }];
  });
  return { tracer: { ...tracer, seq }, counts };
}
