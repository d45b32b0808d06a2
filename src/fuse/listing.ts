// READDIR of a writable tree: "." and "..", then the tree's names, as many as there is room for. What
// does not live here: which names there are, and their cookies (tree/rw).
import type { NativeUpcalls } from '../native/upcalls.ts';
import type { TreeOperations } from '../tree/rw/operations.ts';

/** Cookies of the two names that every directory has; the tree's own are greater. */
const DOT = 1;
const DOT_DOT = 2;

/** One READDIR. */
export interface Listing {
  call: number;
  node: number;
  /** Where the last listing ended; 0 at the start. */
  cookie: number;
  /** With attributes, each name being a lookup (READDIRPLUS). */
  plus: boolean;
}

/** Answers a listing. @throws Errno, Wait: then nothing has been answered, and no lookup counted */
export function listInto(native: NativeUpcalls, tree: TreeOperations, listing: Listing): void {
  const looked: number[] = [];
  try {
    fill(native, tree, listing, looked);
  } catch (error) {
    for (const node of looked) tree.forget(node, 1);
    throw error;
  }
  if (native.replyListing(listing.call)) return;
  // Nobody has heard of them.
  for (const node of looked) tree.forget(node, 1);
}

function fill(
  native: NativeUpcalls,
  tree: TreeOperations,
  { call, node, cookie, plus }: Listing,
  looked: number[],
): void {
  // "." and ".." are given out without a node: the kernel has both.
  if (cookie < DOT) {
    const { attributes, attrValidMs } = tree.getattr(node);
    if (!native.addDirent(call, '.', DOT, 0, attributes, attrValidMs)) return;
  }
  if (cookie < DOT_DOT) {
    const { attributes, attrValidMs } = tree.parentOf(node);
    if (!native.addDirent(call, '..', DOT_DOT, 0, attributes, attrValidMs)) return;
  }
  for (const { name, cookie: at, entry } of tree.list(node, cookie <= DOT_DOT ? 0 : cookie)) {
    const { attributes, attrValidMs } = entry;
    const given = plus ? entry.node : 0;
    if (!native.addDirent(call, name, at, given, attributes, attrValidMs)) return;
    if (!plus) continue;
    tree.looked(entry.node);
    looked.push(entry.node);
  }
}
