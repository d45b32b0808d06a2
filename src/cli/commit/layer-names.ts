// Names that a layer cannot hold. In a layer's tar, `.wh.NAME` is the word for "NAME is removed" (the OCI image
// layer specification): a file that a container has called so would remove another one, wherever the layer is
// unpacked. What does not live here: the whiteouts that a layer is to have (tree/diff-layer.ts).
import { FirstlightError } from '../../errors/errors.ts';
import { textOf } from '../../image/tree.ts';
import type { UpperNode } from '../../tree/upper-tree.ts';

const WHITEOUT = '.wh.';

/** @throws FirstlightError `unsupported` for the first name that would be read as a mark */
export function checkLayerNames(upper: UpperNode): void {
  // A stack of our own: a tree can be deeper than the JavaScript stack.
  const todo = [{ node: upper, path: '' }];
  for (let at = todo.pop(); at !== undefined; at = todo.pop()) {
    for (const [name, node] of at.node.children ?? []) {
      const path = `${at.path}/${name}`;
      if (name.startsWith(WHITEOUT)) throw refused(path);
      if (node.children !== undefined) todo.push({ node, path });
    }
  }
}

function refused(path: string): FirstlightError {
  const shown = textOf(path);
  return new FirstlightError(
    'unsupported',
    `${shown} cannot be in a layer: a name that begins with ${WHITEOUT} means there that another file is removed`,
    { hint: 'rename or remove it, then commit again' },
  );
}
