// The changes of a mount as the entries of an OCI layer, in the order in which they stand in its tar.
// What does not live here: finding the changes (diff.ts), and tar itself (image/tar-write.ts).
//
//   removed name                a file .wh.NAME
//   directory that hides the image's   an entry and .wh..wh..opq in it, before its other entries
//   renamed directory           its whole content, since a layer has no word for a rename
//   further names of a file     links to the first one, in the order of paths
//   socket                      nothing: a tar cannot hold one, and it is nobody's without its process

import type { TarItem } from '../image/tar-write.ts';
import { type InodeType, S_IF } from '../image/tree.ts';
import {
  isDirectory,
  isThere,
  type Place,
  placesBelow,
  rootPlace,
  sameAttributes,
} from './diff.ts';
import type { TemplateEntry } from './entry.ts';
import type { UpperNode } from './upper-tree.ts';

const S_IFMT = 0o170000;
const S_IPERM = 0o7777;
const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';
const TYPES = new Map<number, InodeType>(
  Object.entries(S_IF).map(([type, bits]) => [bits, type as InodeType]),
);

/** One entry of the layer with the place of its bytes. */
export interface LayerItem extends TarItem {
  /** Where a file's bytes are: a path below upper/, or a content of the image. */
  bytes?: { upper: string } | { content: number };
}

/** What the entries of a layer share. */
interface LayerState {
  root: TemplateEntry;
  /** First path of each file that has several names. */
  links: Map<string, string>;
}

/** Every entry of the layer; none where nothing has changed. */
export function* layerItems(image: TemplateEntry, upper: UpperNode): Generator<LayerItem> {
  const state: LayerState = { root: image, links: new Map() };
  const root = rootPlace(image, upper);
  const inside = [...itemsBelow(root, state)];
  if (inside.length > 0 || !sameAttributes({ ...upper, ...timesOf(image) }, image)) {
    // The root's own time is that of the last change in it, and none of its own.
    yield upperItem(upper, './');
  }
  yield* inside;
}

/** Every entry of an image, as one layer of its own. */
export function* wholeItems(image: TemplateEntry): Generator<LayerItem> {
  const links = new Map<string, string>();
  // A stack of our own: a tree can be deeper than the JavaScript stack.
  const todo = [image];
  for (let entry = todo.pop(); entry !== undefined; entry = todo.pop()) {
    const { path } = entry;
    if (entry.isDirectory) {
      yield entryItem(entry, path === '' ? './' : `${path}/`);
      todo.push(...[...entry.children()].reverse());
      continue;
    }
    const place = { path, upper: undefined, moved: entry };
    const item = fileItem(place, { root: image, links });
    if (item.type !== 'socket') yield item;
  }
}

/** makeSnapshot cannot set the root's time exactly: it does not count as a change. */
function timesOf(image: TemplateEntry): { mtimeSec: number; mtimeNsec: number } {
  const { mtimeSec, mtimeNsec } = image.attributes();
  return { mtimeSec, mtimeNsec };
}

function* itemsBelow(directory: Place, state: LayerState): Generator<LayerItem> {
  for (const place of placesBelow(directory, state.root)) {
    if (isThere(place)) yield* itemsAt(place, state);
    else yield whiteout(`${prefixOf(directory)}${WHITEOUT}${place.name}`);
  }
}

function prefixOf({ path }: Place): string {
  return path === '' ? '' : `${path}/`;
}

/** An empty file, with nothing that could differ between two runs. */
function whiteout(name: string): LayerItem {
  return {
    ...{ name, type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSec: 0, mtimeNsec: 0, size: 0 },
  };
}

function* itemsAt(place: Place, state: LayerState): Generator<LayerItem> {
  if (!isDirectory(place)) {
    const item = fileItem(place, state);
    if (item.type !== 'socket') yield item;
    return;
  }
  const { upper, moved, image, below, path } = place;
  const own = upper === undefined ? entryItem(moved!, `${path}/`) : upperItem(upper, `${path}/`);
  const hides = image?.isDirectory === true && below?.row !== image.row;
  // Then all that is left of the image's names is said one by one below; the mark says it at once.
  const inside = hides ? onlyThere(place, state) : [...itemsBelow(place, state)];
  const untouched =
    !hides &&
    inside.length === 0 &&
    upper !== undefined &&
    image?.isDirectory === true &&
    sameAttributes(upper, image);
  if (untouched) return;
  yield own;
  if (hides) yield whiteout(`${path}/${OPAQUE}`);
  yield* inside;
}

/** What is in a directory that hides the image's: no whiteouts, and everything whole. */
function onlyThere(place: Place, state: LayerState): LayerItem[] {
  const hidden: Place = { ...place, image: undefined };
  return [...itemsBelow(hidden, state)];
}

function fileItem(
  { upper, moved, path }: Pick<Place, 'upper' | 'moved' | 'path'>,
  state: LayerState,
): LayerItem {
  const item = upper === undefined ? entryItem(moved!, path) : upperItem(upper, path);
  // Layers have no sockets, so no other name may link to one.
  if (item.type === 'socket') return item;
  const key = upper === undefined ? templateKey(moved!) : upperKey(upper);
  if (key === undefined) return item;
  const first = state.links.get(key);
  if (first === undefined) {
    state.links.set(key, path);
    return item;
  }
  const { bytes: _bytes, xattrs: _xattrs, ...rest } = item;
  return { ...rest, type: 'link', size: 0, linkname: first };
}

function upperKey({ nlink, ino }: UpperNode): string | undefined {
  return nlink > 1 ? `upper ${ino}` : undefined;
}

function templateKey({ toc, row }: TemplateEntry): string | undefined {
  return toc.nlink(row) > 1 ? `image ${toc.inode(row)}` : undefined;
}

function typeOf(mode: number): InodeType {
  return TYPES.get(mode & S_IFMT) ?? 'file';
}

/** Numbers of a device as new_encode_dev packs them. */
function deviceOf(rdev: number): { major: number; minor: number } {
  return { major: (rdev >>> 8) & 0xfff, minor: (rdev & 0xff) | ((rdev >>> 12) & 0xfff00) };
}

interface Facts {
  mode: number;
  uid: number;
  gid: number;
  size: number;
  mtimeSec: number;
  mtimeNsec: number;
  rdev: number;
}

function itemOf(facts: Facts, name: string, target: string | undefined): LayerItem {
  const { mode, uid, gid, mtimeSec, mtimeNsec } = facts;
  const type = typeOf(mode);
  return {
    ...{ name, type, mode: mode & S_IPERM, uid, gid, mtimeSec, mtimeNsec },
    size: type === 'file' ? facts.size : 0,
    ...(target === undefined ? {} : { linkname: target }),
    ...(type === 'char' || type === 'block' ? deviceOf(facts.rdev) : {}),
  };
}

function upperItem(node: UpperNode, name: string): LayerItem {
  const item: LayerItem = itemOf(node, name, node.target);
  if (node.xattrs.size > 0) item.xattrs = node.xattrs;
  if (item.type === 'file' && item.size > 0) item.bytes = { upper: name };
  return item;
}

function entryItem(entry: TemplateEntry, name: string): LayerItem {
  const item: LayerItem = itemOf(entry.attributes(), name, entry.target());
  const xattrs = entry.xattrs();
  if (xattrs.size > 0) item.xattrs = xattrs;
  if (entry.content >= 0) item.bytes = { content: entry.content };
  return item;
}
