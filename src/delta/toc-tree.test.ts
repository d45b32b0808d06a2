// A tree that was taken out of a TOC makes the same TOC again.
import test from 'ava';
import fc from 'fast-check';
import { type Inode, makeDirectory, type TreeNode } from '../image/tree.ts';
import { Toc } from './toc.ts';
import { buildToc } from './toc-build.ts';
import { treeOfToc } from './toc-tree.ts';

const inode: fc.Arbitrary<Inode> = fc
  .record({
    type: fc.constantFrom('file', 'symlink', 'char', 'block', 'fifo', 'socket'),
    mode: fc.nat(0o7777),
    uid: fc.nat(),
    mtimeSec: fc.integer(),
    mtimeNsec: fc.nat(999_999_999),
    size: fc.nat(3_000_000),
    layer: fc.nat(5),
    minor: fc.nat((1 << 20) - 1),
    attribute: fc.boolean(),
  })
  .map(({ type, attribute, minor, size, ...rest }) => {
    const kind = type as Inode['type'];
    return {
      ...{ ...rest, type: kind, gid: 3, size: kind === 'file' ? size : 0 },
      ...(kind === 'file' && size > 0 ? { digest: size.toString(16).padStart(64, '0') } : {}),
      ...(kind === 'symlink' ? { mode: 0o777, target: `t${minor}` } : {}),
      ...(kind === 'char' || kind === 'block' ? { major: 259, minor } : {}),
      ...(attribute ? { xattrs: new Map([['user.a', Buffer.from([minor & 0xff])]]) } : {}),
    };
  });

test('the way back and forth changes nothing, hard links included', (t) => {
  fc.assert(
    fc.property(
      fc.array(
        fc.record({ path: fc.array(fc.constantFrom('a', 'b', '\xff'), { maxLength: 3 }), inode }),
      ),
      fc.nat(),
      (files, pick) => {
        const root = makeDirectory('', 0);
        const all: TreeNode[] = [];
        for (const [i, { path, inode: file }] of files.entries()) {
          let directory = root;
          for (const name of path) {
            let next = directory.children!.get(`d${name}`);
            if (next === undefined) {
              next = makeDirectory(`d${name}`, i % 3);
              directory.children!.set(next.name, next);
            }
            directory = next;
          }
          // Every third file is one more name of an earlier one.
          const linked = i % 3 === 2 ? all[pick % all.length] : undefined;
          const node = { name: `f${i}`, inode: linked?.inode ?? file };
          directory.children!.set(node.name, node);
          all.push(node);
        }
        const { bytes, digests } = buildToc(root);
        const again = buildToc(treeOfToc(new Toc(bytes), digests));
        return again.bytes.equals(bytes) && again.digests.equals(digests);
      },
    ),
  );
  t.pass();
});
