// Ranks for one image: which of its files and parts a bundle brings first, from all runs that are
// known. Turning paths into contents and parts is the caller's, who has the table of contents.
import { createHash } from 'node:crypto';
import {
  DEFAULT_GROUP,
  imageKey,
  TRACE_PART_BYTES,
  type Tracer,
  type TracerHead,
} from '../trace/tracer.ts';
import { imagesOf } from './group.ts';
import { type ImageFiles, type MatchCounts, mapTracer } from './match.ts';
import { mergeUnits, type Unit, WHOLE } from './units.ts';

/** The newest runs of an image that count; older ones say less, and bound the work. */
const RUNS_MAX = 32;

/** A file or a part of one, in order. */
export interface RankedPart {
  /** Byte string from the image's root, without a leading slash: a regular file of the image. */
  path: string;
  /** Number of the part (of TRACE_PART_BYTES) within the file; absent for the whole file. */
  part?: number;
  /** 0, 1, 2, ... */
  rank: number;
  /** How many runs saw it, and of how many. */
  runs: number;
  of: number;
  /** Whose runs say so: the image's own, those of another version, those of a neighbour in a group. */
  source: 'own' | 'version' | 'neighbour';
}

/** The image that ranks are wanted for. */
export interface RankTarget {
  digest: string;
  /** Reference, such as `redis:7`. */
  image: string;
  platform?: string;
  files: ImageFiles;
}

/** What {@link rankImage} found. */
export interface ImageRanks {
  parts: RankedPart[];
  /** Runs that were used. */
  runs: number;
  /** How files of other versions' runs were found; all zero where none was used. */
  matched: MatchCounts;
}

/** The part of a reference that its versions share: without tag and digest. */
export function repositoryOf(image: string): string {
  const name = image.replace(/@.*$/, '');
  return name.replace(/:[^:/]*$/, '');
}

function isOwn(tracer: TracerHead, target: RankTarget): boolean {
  return tracer.digest === undefined
    ? tracer.image === target.image
    : tracer.digest === target.digest;
}

function isVersion(tracer: TracerHead, target: RankTarget): boolean {
  return (
    !isOwn(tracer, target) &&
    repositoryOf(tracer.image) === repositoryOf(target.image) &&
    (tracer.platform ?? target.platform) === (target.platform ?? tracer.platform)
  );
}

function newest(tracers: readonly Tracer[]): Tracer[] {
  return [...tracers].sort((x, y) => (x.startNs > y.startNs ? -1 : 1)).slice(0, RUNS_MAX);
}

/** Takes units that the image has, each once, in the order they are given. */
class Ranking {
  readonly parts: RankedPart[] = [];
  readonly #files: ImageFiles;
  readonly #whole = new Set<string>();
  readonly #seen = new Set<string>();

  constructor(files: ImageFiles) {
    this.#files = files;
  }

  add(unit: Unit, source: RankedPart['source']): void {
    const { path, part, runs, of } = unit;
    const file = this.#files.file(path);
    if (file === undefined || file.sizeBytes === 0) return;
    const large = file.sizeBytes > TRACE_PART_BYTES;
    if (part !== WHOLE && part * TRACE_PART_BYTES >= file.sizeBytes) return;
    const whole = part === WHOLE || !large;
    const key = whole ? path : `${part}/${path}`;
    const known = whole ? this.#whole : this.#seen;
    if (this.#whole.has(path) || known.has(key)) return;
    known.add(key);
    const rank = this.parts.length;
    this.parts.push({ path, ...(whole ? {} : { part }), rank, runs, of, source });
  }
}

/** Runs of other images in the groups that the image's runs belong to, as runs of the image. */
function neighbours(
  tracers: readonly Tracer[],
  related: readonly Tracer[],
  target: RankTarget,
  filesOf: (digest: string) => ImageFiles | undefined,
): Unit[] {
  const groups = new Set(
    related.map(({ group }) => group).filter((name) => name !== DEFAULT_GROUP),
  );
  const others = tracers
    .filter(({ group }) => groups.has(group))
    .filter((t) => !related.includes(t));
  return imagesOf(others).flatMap((of) => {
    const runs = newest(others.filter((run) => imageKey(run) === imageKey(of)));
    const files = of.digest === undefined ? undefined : filesOf(of.digest);
    // Only what is the same content: the same path in another application's image is another file.
    const shared = runs.map((run) => ({
      ...run,
      seq: run.seq.flatMap(({ digest, ...item }) => {
        const content = digest ?? files?.file(item.path)?.digest;
        const file = content === undefined ? undefined : target.files.withDigest(content);
        return file === undefined ? [] : [{ ...item, path: file.path }];
      }),
    }));
    return mergeUnits(shared);
  });
}

/**
 * Ranks the files of an image by the runs that are known.
 *
 * First what its own runs read, merged by median rank; then what runs of other versions of it read
 * (the same repository and platform), found by path, version or content; then what the other images
 * of its groups read and it holds too. Where there are no own runs, the other versions' lead.
 * @param tracers  all runs
 * @param filesOf  files of a traced image by its digest, where they are at hand
 */
export function rankImage(
  tracers: readonly Tracer[],
  target: RankTarget,
  filesOf: (digest: string) => ImageFiles | undefined = () => undefined,
): ImageRanks {
  const own = newest(tracers.filter((tracer) => isOwn(tracer, target)));
  const versions = newest(tracers.filter((tracer) => isVersion(tracer, target)));
  const matched: MatchCounts = { path: 0, version: 0, content: 0, missing: 0 };
  const mapped = versions.map((run) => {
    const from = run.digest === undefined ? undefined : filesOf(run.digest);
    const { tracer, counts } = mapTracer(run, from, target.files);
    for (const how of Object.keys(matched) as (keyof MatchCounts)[]) matched[how] += counts[how];
    return tracer;
  });
  const ranking = new Ranking(target.files);
  for (const unit of mergeUnits(own)) ranking.add(unit, 'own');
  for (const unit of mergeUnits(mapped)) ranking.add(unit, 'version');
  const related = tracers.filter((tracer) => isOwn(tracer, target) || isVersion(tracer, target));
  for (const unit of neighbours(tracers, related, target, filesOf)) {
    ranking.add(unit, 'neighbour');
  }
  return { parts: ranking.parts, runs: own.length + versions.length, matched };
}

/** Names an order: equal for equal parts in equal order, empty for none. For keys of caches. */
export function ranksVersion(parts: readonly RankedPart[]): string {
  if (parts.length === 0) return '';
  const hash = createHash('sha256');
  for (const { path, part } of parts) hash.update(`${part ?? WHOLE}/${path}\0`, 'latin1');
  return hash.digest('hex');
}
