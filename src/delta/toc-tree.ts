// A flat TOC back into the tree that it was built from, for laying another layer over it. What does not
// live here: building a TOC (toc-build.ts).
import { type Inode, type InodeType, S_IF, type TreeNode } from '../image/tree.ts';
import type { Toc } from './toc.ts';

const S_IFMT = 0o170000;
const S_IPERM = 0o7777;
const DIGEST_BYTES = 32;
const TYPES = new Map(Object.entries(S_IF).map(([type, bits]) => [bits, type as InodeType]));

function inodeOf(toc: Toc, row: number, digests: Buffer): Inode {
  const mode = toc.mode(row);
  const type = TYPES.get(mode & S_IFMT)!;
  const content = toc.content(row);
  const rdev = toc.rdev(row);
  const xattrs = toc.xattrs(row);
  const at = content * DIGEST_BYTES;
  return {
    type,
    mode: mode & S_IPERM,
    uid: toc.uid(row),
    gid: toc.gid(row),
    mtimeSec: toc.mtimeSec(row),
    mtimeNsec: toc.mtimeNsec(row),
    // What stat shows of others is the format's own rule.
    size: type === 'file' ? toc.size(row) : 0,
    layer: toc.layer(row),
    ...(content < 0 ? {} : { digest: digests.toString('hex', at, at + DIGEST_BYTES) }),
    ...(type === 'symlink' ? { target: toc.target(row).toString('latin1') } : {}),
    ...(type === 'char' || type === 'block'
      ? { major: (rdev >>> 8) & 0xfff, minor: (rdev & 0xff) | ((rdev >>> 12) & 0xfff00) }
      : {}),
    ...(xattrs.size === 0 ? {} : { xattrs }),
  };
}

/**
 * The tree of a TOC.
 * @param digests  sha256 of each content, 32 bytes a slot
 */
export function treeOfToc(toc: Toc, digests: Buffer): TreeNode {
  const nodes: TreeNode[] = [];
  const inodes = new Map<number, Inode>();
  for (let row = 0; row < toc.rows; row++) {
    const first = toc.inode(row);
    const inode = inodes.get(first) ?? inodeOf(toc, first, digests);
    if (toc.nlink(row) > 1) inodes.set(first, inode);
    const node: TreeNode = { name: toc.name(row), inode };
    if (inode.type === 'dir') node.children = new Map();
    nodes.push(node);
    // Rows stand in breadth-first order: the directory is there by now.
    if (row > 0) nodes[toc.parent(row)]!.children!.set(node.name, node);
  }
  return nodes[0]!;
}
