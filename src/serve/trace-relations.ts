// Which traces have a say in which image's order. How much each of them says is optimize/ranks.ts.
import { DEFAULT_GROUP } from '../trace/tracer.ts';
import type { NamedImage, TraceRecord } from './catalog.ts';

/** What a trace is to an image: a run of it, a run of another version of it, or a run of another image of its group. */
export type Relation = 'own' | 'version' | 'neighbour';

/** An image with all of its names. */
export interface KnownImage {
  digest: string;
  platform: string;
  names: string[];
}

/** NAME:TAG without the tag. */
export function repositoryOf(name: string): string {
  return name.slice(0, name.lastIndexOf(':'));
}

/** Rows of the catalog, one for each name, as images. */
export function knownImages(rows: readonly NamedImage[]): KnownImage[] {
  const images = new Map<string, KnownImage>();
  for (const { digest, platform, name } of rows) {
    const image = images.get(digest) ?? { digest, platform, names: [] };
    images.set(digest, image);
    if (name !== undefined) image.names.push(name);
  }
  return [...images.values()];
}

function direct(
  trace: TraceRecord,
  image: KnownImage,
  repositories: ReadonlySet<string>,
): Relation | undefined {
  if (trace.digest === image.digest) return 'own';
  const samePlatform = (trace.platform ?? image.platform) === image.platform;
  if (trace.name === undefined || !samePlatform) return undefined;
  if (trace.digest === undefined && image.names.includes(trace.name)) return 'own';
  return repositories.has(repositoryOf(trace.name)) ? 'version' : undefined;
}

/** The traces that an image's order depends on, by id. */
export function relationsOf(
  image: KnownImage,
  traces: readonly TraceRecord[],
): Map<string, Relation> {
  const repositories = new Set(image.names.map(repositoryOf));
  const found = new Map<string, Relation>();
  const groups = new Set<string>();
  for (const trace of traces) {
    const relation = direct(trace, image, repositories);
    if (relation === undefined) continue;
    found.set(trace.id, relation);
    if (trace.group !== DEFAULT_GROUP) groups.add(trace.group);
  }
  for (const trace of traces) {
    if (groups.has(trace.group) && !found.has(trace.id)) found.set(trace.id, 'neighbour');
  }
  return found;
}

/** Digests of the images whose order depends on a trace, which is one of `traces`. */
export function imagesOf(
  trace: TraceRecord,
  images: readonly KnownImage[],
  traces: readonly TraceRecord[],
): string[] {
  const group = traces.filter((t) => t.id === trace.id || t.group === trace.group);
  return images.filter((i) => relationsOf(i, group).has(trace.id)).map((i) => i.digest);
}
