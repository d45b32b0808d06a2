// Random layers against a plain model: a map of paths, whiteouts first, then entries in order. Names
// are drawn from three letters, so that they collide.
import test from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { merge, type Packed, pack } from './testkit.ts';
import type { TreeNode } from './tree.ts';

type Op = { op: 'file' | 'dir' | 'whiteout' | 'opaque' | 'link'; path: string; other: string };
/** What a path is; the owner tells entries apart. */
type Entry = { type: string; uid: number };
type Model = Map<string, Entry>;

class Refused extends Error {}

function parents(path: string): string[] {
  const names = path.split('/');
  return names.slice(1).map((_, i) => names.slice(0, i + 1).join('/'));
}

function removeBelow(model: Model, path: string): void {
  for (const each of [...model.keys()]) if (each.startsWith(`${path}/`)) model.delete(each);
}

function applyLayer(lower: Model, ops: Op[], uidOf: (index: number) => number): Model {
  const below = new Map(lower);
  for (const { op, path } of ops) {
    if (op === 'opaque' || op === 'whiteout') removeBelow(below, path);
    if (op === 'whiteout') below.delete(path);
  }
  const own: Model = new Map();
  const passed = new Set<string>();
  for (const [index, { op, path, other }] of ops.entries()) {
    const isMark = op === 'whiteout' || op === 'opaque';
    const above = op === 'opaque' ? [...parents(path), path] : parents(path);
    if (op === 'link') {
      // A link names what this layer has by now, or else what the layers below had.
      const target = own.get(other) ?? lower.get(other);
      if (target === undefined || target.type === 'dir') throw new Refused();
    }
    if (above.some((parent) => own.has(parent) && own.get(parent)!.type !== 'dir')) {
      throw new Refused();
    }
    if (isMark) continue;
    for (const parent of above) {
      passed.add(parent);
      if (below.get(parent)?.type === 'file') below.delete(parent);
    }
    if (op === 'dir') {
      if (below.get(path)?.type === 'file') below.delete(path);
      own.set(path, { type: 'dir', uid: uidOf(index) });
      continue;
    }
    const linked = op === 'link' ? (own.get(other) ?? lower.get(other)!) : undefined;
    removeBelow(own, path);
    for (const each of [...passed]) if (each.startsWith(`${path}/`)) passed.delete(each);
    passed.delete(path);
    removeBelow(below, path);
    below.delete(path);
    own.set(path, linked ?? { type: 'file', uid: uidOf(index) });
  }
  const result = new Map(below);
  for (const path of passed) if (!result.has(path)) result.set(path, { type: 'dir', uid: 0 });
  for (const [path, entry] of own) result.set(path, entry);
  return result;
}

function packedOf({ op, path, other }: Op, uid: number): Packed {
  const at = path.lastIndexOf('/') + 1;
  switch (op) {
    case 'dir':
      return { name: `${path}/`, type: 'directory', uid };
    case 'file':
      return { name: path, body: `${uid}`, uid };
    case 'link':
      return { name: path, type: 'link', linkname: other, uid };
    case 'whiteout':
      return { name: `${path.slice(0, at)}.wh.${path.slice(at)}`, body: '' };
    case 'opaque':
      return { name: `${path}/.wh..wh..opq`, body: '' };
  }
}

function flat(root: TreeNode): Model {
  const found: Model = new Map();
  const walk = (node: TreeNode, prefix: string) => {
    for (const child of node.children?.values() ?? []) {
      const path = `${prefix}${child.name}`;
      found.set(path, { type: child.inode.type, uid: child.inode.uid });
      walk(child, `${path}/`);
    }
  };
  walk(root, '');
  return found;
}

const letters = fc.constantFrom('a', 'b', 'c');
const path = fc.array(letters, { minLength: 1, maxLength: 3 }).map((names) => names.join('/'));
const op = fc.record({
  op: fc.constantFrom<Op['op'][]>(
    ...([
      'file',
      'dir',
      'dir',
      'whiteout',
      'whiteout',
      'opaque',
      'dir',
      'file',
      'dir',
      'link',
    ] as const),
  ),
  path,
  other: path,
});

test('random layers give the tree of the model, or are refused as it says', async (t) => {
  let refused = 0;
  let merged = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(op, { maxLength: 9 }), { minLength: 1, maxLength: 4 }),
      async (layers) => {
        const uidOf = (layer: number) => (index: number) => 1 + layer * 100 + index;
        let wanted: Model | undefined = new Map();
        try {
          for (const [layer, ops] of layers.entries()) {
            wanted = applyLayer(wanted, ops, uidOf(layer));
          }
        } catch (error) {
          if (!(error instanceof Refused)) throw error;
          wanted = undefined;
        }
        const tars = await Promise.all(
          layers.map((ops, layer) =>
            pack(ops.map((each, index) => packedOf(each, uidOf(layer)(index)))),
          ),
        );
        let found: Model | undefined;
        try {
          found = flat((await merge(tars)).root);
        } catch (error) {
          if (!(error instanceof FirstlightError) || error.kind !== 'corrupt') throw error;
        }
        if (wanted === undefined) refused++;
        else merged++;
        t.deepEqual(found && [...found].sort(), wanted && [...wanted].sort());
      },
    ),
    { numRuns: 1500 },
  );
  t.log(`${merged} merged, ${refused} refused`);
  t.true(merged > 200);
});
