// What a mount has changed, found from the image's tree and the upper directory alone: the mount itself
// is never asked. What does not live here: reading the upper directory (upper-tree.ts), and the changes
// as a layer (diff-layer.ts).
//
// At a path there are up to three things: what the image has there (`image`), what upper/ has (`upper`),
// and what shows through from the image now. The last is what the image has there too, unless a
// directory above was replaced (opaque) or renamed (redirect).
import { S_IF } from '../image/tree.ts';
import type { TemplateEntry } from './entry.ts';
import type { UpperNode } from './upper-tree.ts';

const S_IFMT = 0o170000;

/** One path where something may have changed. */
export interface Place {
  name: string;
  /** Byte string, without a slash in front; empty for the root. */
  path: string;
  /** What was written there. */
  upper: UpperNode | undefined;
  /** What is seen there of the image, from another path of it; only where nothing was written. */
  moved: TemplateEntry | undefined;
  /** Of a directory: the image's directory whose names show through. */
  below: TemplateEntry | undefined;
  /** What the image has at this path. */
  image: TemplateEntry | undefined;
}

/** Kinds as `docker diff` prints them: added, changed, deleted. */
export type ChangeKind = 'A' | 'C' | 'D';

export interface Change {
  kind: ChangeKind;
  /** Byte string with a slash in front. */
  path: string;
}

/** The whole tree as a place. */
export function rootPlace(image: TemplateEntry, upper: UpperNode): Place {
  const below = upper.opaque ? undefined : image;
  return { name: '', path: '', upper, moved: undefined, below, image };
}

/** True where there is a file or directory now. */
export function isThere({ upper, moved }: Place): boolean {
  return upper !== undefined || moved !== undefined;
}

/** True for a directory, as the container sees it. */
export function isDirectory({ upper, moved }: Place): boolean {
  return upper === undefined ? moved?.isDirectory === true : (upper.mode & S_IFMT) === S_IF.dir;
}

/** The names below a directory where something may have changed, sorted by bytes. */
export function* placesBelow(directory: Place, root: TemplateEntry): Generator<Place> {
  const { upper, below, image, path } = directory;
  const names = new Set<string>(upper?.children?.keys());
  // Where the image's own directory shows through, all that is not in upper is untouched.
  if (below?.row !== image?.row) {
    for (const { name } of below?.children() ?? []) names.add(name);
    for (const { name } of image?.children() ?? []) names.add(name);
  }
  for (const name of [...names].sort()) {
    const own = upper?.children?.get(name);
    const through = below?.lookup(name);
    const here = image?.lookup(name);
    if (own === undefined && through !== undefined && through.row === here?.row) continue;
    const place: Place = {
      name,
      path: path === '' ? name : `${path}/${name}`,
      upper: own?.whiteout === true ? undefined : own,
      moved: own === undefined ? through : undefined,
      below: own === undefined ? asDirectory(through) : belowOf(own, through, directory, root),
      image: here,
    };
    if (isThere(place) || here !== undefined) yield place;
  }
}

function asDirectory(entry: TemplateEntry | undefined): TemplateEntry | undefined {
  return entry?.isDirectory === true ? entry : undefined;
}

/** The image's directory that shows through one of upper. */
function belowOf(
  own: UpperNode,
  through: TemplateEntry | undefined,
  parent: Place,
  root: TemplateEntry,
): TemplateEntry | undefined {
  const { opaque, redirect, mode } = own;
  if (opaque || (mode & S_IFMT) !== S_IF.dir) return undefined;
  if (redirect === undefined) return asDirectory(through);
  const found = redirect.startsWith('/') ? root.resolve(redirect) : parent.below?.lookup(redirect);
  return asDirectory(found);
}

/** True where a directory of upper has the attributes that the image's has. */
export function sameAttributes(upper: UpperNode, image: TemplateEntry): boolean {
  const a = image.attributes();
  if (upper.mode !== a.mode || upper.uid !== a.uid || upper.gid !== a.gid) return false;
  if (upper.mtimeSec !== a.mtimeSec || upper.mtimeNsec !== a.mtimeNsec) return false;
  return sameXattrs(upper.xattrs, image.xattrs());
}

function sameXattrs(one: Map<string, Buffer>, other: Map<string, Buffer>): boolean {
  if (one.size !== other.size) return false;
  return [...one].every(([name, value]) => other.get(name)?.equals(value) === true);
}

/**
 * Every change, in the order of the paths. A directory counts as changed where something in it has
 * changed, as with `docker diff`; what was removed is told by its uppermost path.
 */
export function* diff(image: TemplateEntry, upper: UpperNode): Generator<Change> {
  for (const place of placesBelow(rootPlace(image, upper), image)) yield* diffAt(place, image);
}

function* diffAt(place: Place, root: TemplateEntry): Generator<Change> {
  const path = `/${place.path}`;
  if (!isThere(place)) {
    yield { kind: 'D', path };
    return;
  }
  const { upper, image } = place;
  if (!isDirectory(place)) {
    yield { kind: image === undefined ? 'A' : 'C', path };
    return;
  }
  const inside: Change[] = [];
  for (const child of placesBelow(place, root)) {
    for (const change of diffAt(child, root)) inside.push(change);
  }
  if (image === undefined) yield { kind: 'A', path };
  else {
    const untouched = upper !== undefined && image.isDirectory && sameAttributes(upper, image);
    if (!untouched || inside.length > 0) yield { kind: 'C', path };
  }
  yield* inside;
}
