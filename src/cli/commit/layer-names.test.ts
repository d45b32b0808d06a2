// Names that would be read as whiteouts are refused; others that look like them are not.
import test from 'ava';
import type { FirstlightError } from '../../errors/errors.ts';
import type { UpperNode } from '../../tree/upper-tree.ts';
import { checkLayerNames } from './layer-names.ts';

function node(name: string, children?: UpperNode[]): UpperNode {
  const inside = children && new Map(children.map((child) => [child.name, child]));
  return { name, ...(inside && { children: inside }) } as UpperNode;
}

for (const name of ['.wh.x', '.wh..wh..opq', '.wh.']) {
  test(`${name} is refused, with its path`, (t) => {
    const upper = node('', [node('a', [node('b', [node('fine'), node(name)])])]);
    const error = t.throws<FirstlightError>(() => checkLayerNames(upper));
    t.is(error?.kind, 'unsupported');
    t.true(error!.line.includes(`/a/b/${name} cannot be in a layer`));
  });
}

test('a directory of such a name is refused, and one that only contains it is not', (t) => {
  t.throws(() => checkLayerNames(node('', [node('.wh.d', [])])));
  t.notThrows(() => checkLayerNames(node('', [node('x.wh.y'), node('.wh'), node('.whx', [])])));
});

test('a tree of a hundred thousand levels does no harm', (t) => {
  let deep = node('d', [node('.wh.x')]);
  for (let level = 0; level < 100_000; level++) deep = node('d', [deep]);
  t.throws(() => checkLayerNames(node('', [deep])));
});
