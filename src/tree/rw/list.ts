// Listings. A directory may change while it is read: the order of names never does, so that unchanged
// ones are neither repeated nor lost. First the template's names by row (also where something else
// stands under them now), then new ones in the order in which they came.
import { entryOf } from './attr.ts';
import type { Core } from './core.ts';
import { FIRST_OWN_COOKIE, ROW_COOKIE } from './names.ts';
import type { Directory } from './node.ts';
import type { Listed } from './operations.ts';

/**
 * Names after `cookie`; 0, 1 and 2 are the start.
 * @param into  holds the attributes of the entry that was yielded last
 */
export function* list(
  core: Core,
  directory: Directory,
  cookie: number,
  into: Float64Array,
): Generator<Listed> {
  if (directory.removed) return;
  if (directory.row >= 0 && cookie < FIRST_OWN_COOKIE)
    yield* listRows(core, directory, cookie, into);
  for (const slot of directory.names.after(Math.max(cookie, FIRST_OWN_COOKIE - 1))) {
    if (slot.node === undefined) continue;
    yield { name: slot.name, cookie: slot.cookie, entry: entryOf(core, slot.node, into) };
  }
}

function* listRows(
  core: Core,
  directory: Directory,
  cookie: number,
  into: Float64Array,
): Generator<Listed> {
  const { toc } = core;
  const { first, end } = toc.children(directory.row);
  const start = cookie <= ROW_COOKIE ? first : Math.max(first, cookie - ROW_COOKIE + 1);
  for (let row = start; row < end; row++) {
    const name = toc.name(row);
    const slot = directory.slot(name);
    const child = slot === undefined ? core.childOfRow(row) : slot.node;
    if (child === undefined) continue;
    yield { name, cookie: row + ROW_COOKIE, entry: entryOf(core, child, into) };
  }
}
