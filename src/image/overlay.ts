// Lays a complete layer over the merged tree of the layers below it. Reading the layer is layer.ts.
import type { LayerNode } from './layer.ts';
import { makeDirectory, type TreeNode } from './tree.ts';

/**
 * The tree that `layer` over `lower` gives. Directories of `lower` are changed in place, so `lower`
 * must not be used afterwards.
 * @param index  the layer's number, for directories that no entry describes
 */
export function overlay(lower: TreeNode, layer: LayerNode, index: number): TreeNode {
  const root = directory('', lower, layer, index);
  // A stack of our own: a hostile path can be deeper than the JavaScript stack.
  const todo: [TreeNode, LayerNode][] = [[root, layer]];
  for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
    const [parent, own] = next;
    const children = parent.children!;
    for (const [name, node] of own.children ?? []) {
      const below = children.get(name);
      if (node.inode !== undefined && node.inode.type !== 'dir') {
        children.set(name, { name, inode: node.inode });
        continue;
      }
      const isBelow = below?.inode.type === 'dir' && !node.hides;
      if (node.inode === undefined && !node.needed && !isBelow) {
        // A whiteout, or whiteouts inside a directory that is not there; these make none.
        if (node.hides) children.delete(name);
        continue;
      }
      const merged = directory(name, below, node, index);
      children.set(name, merged);
      todo.push([merged, node]);
    }
  }
  return root;
}

/** A directory of the layer over what is below it; attributes are the layer's where it has any. */
function directory(
  name: string,
  below: TreeNode | undefined,
  node: LayerNode,
  index: number,
): TreeNode {
  const base = below?.inode.type === 'dir' && !node.hides ? below : undefined;
  return {
    name,
    inode: node.inode ?? base?.inode ?? makeDirectory(name, index).inode,
    children: (node.opaque ? undefined : base?.children) ?? new Map(),
  };
}
