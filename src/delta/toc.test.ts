// The flat TOC and its wire form: built, packed, unpacked, checked; and every way of breaking one
// that checkToc must find.
import test from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { S_IF } from '../image/tree.ts';
import { anyImage, imageOf, makeTree, type Spec } from './testing.ts';
import { Toc } from './toc.ts';
import { buildToc, buildTocInSteps } from './toc-build.ts';
import { checkToc } from './toc-check.ts';
import { CONTENT, HEADER, NONE, PART_BYTES, ROW } from './toc-layout.ts';
import { packToc } from './toc-pack.ts';
import { STREAMS } from './toc-streams.ts';
import { unpackToc } from './toc-unpack.ts';
import { VarintReader, VarintWriter } from './varint.ts';

test('any tree passes the check, packs, and unpacks to the same bytes', (t) => {
  fc.assert(
    fc.property(anyImage, ({ toc }) => {
      checkToc(toc.bytes);
      const packed = packToc(toc);
      t.true(unpackToc(packed).equals(toc.bytes));
      t.true(packToc(new Toc(unpackToc(packed))).equals(packed));
    }),
    { numRuns: 200 },
  );
});

// A tree with everything in it. Rows: 0 root, 1 dev, 2 dir, 3 empty, 4 fifo, 5 file, 6 hard, 7 link,
// 8 null, 9 same, 10 deep, 11 more, 12 x, 13 zero
const shared: Spec = {
  data: Buffer.alloc(PART_BYTES + 7, 'x'),
  xattrs: new Map([
    ['user.a', Buffer.from('1')],
    ['user.b', Buffer.from('22')],
  ]),
};
const everything: Record<string, Spec> = {
  dev: { entries: { deep: { entries: { x: { data: 'x' } } } } },
  dir: { entries: { more: { entries: { zero: {} } } } },
  empty: { data: '' },
  fifo: { type: 'fifo' },
  file: shared,
  hard: shared,
  link: { type: 'symlink', target: 'dir/more' },
  null: { type: 'char', major: 1, minor: 3 },
  same: { data: Buffer.alloc(PART_BYTES + 7, 'x') },
};

function good(): Buffer {
  return Buffer.from(imageOf(everything).toc.bytes);
}

test('the tree with everything is what the cases below take it for', (t) => {
  const toc = checkToc(good());
  const names = Array.from({ length: toc.rows }, (_, row) => toc.name(row));
  const expected = ',dev,dir,empty,fifo,file,hard,link,null,same,deep,more,x,zero'.split(',');
  t.deepEqual(names, expected);
  t.is(toc.inode(6), 5);
  t.is(toc.content(9), toc.content(5));
  t.is(toc.contents, 2);
  t.deepEqual([...toc.xattrs(6).keys()], ['user.a', 'user.b']);
  t.is(toc.target(7).toString(), 'dir/more');
  t.is(toc.rdev(8), 0x103);
  t.is(toc.path(12), 'dev/deep/x');
});

/** Sets a field of a row. */
function row(number: number, field: number, value: number, bytes = 4) {
  return (toc: Buffer) => toc.writeUIntLE(value, HEADER.bytes + number * ROW.bytes + field, bytes);
}
function header(field: number, value: number) {
  return (toc: Buffer) => toc.writeUInt32LE(value, field);
}
function content(number: number, field: number, value: number) {
  return (toc: Buffer) =>
    toc.writeUInt32LE(
      value,
      toc.readUInt32LE(HEADER.contentsOffset) + number * CONTENT.bytes + field,
    );
}
/** Writes into a row's name. */
function name(number: number, at: number, byte: number) {
  return (toc: Buffer) => {
    new Toc(toc).nameBytes(number)[at] = byte;
  };
}
function xattr(at: number, value: number, bytes: number) {
  return (toc: Buffer) => toc.writeUIntLE(value, toc.readUInt32LE(HEADER.xattrsOffset) + at, bytes);
}
function all(...changes: ((toc: Buffer) => unknown)[]) {
  return (toc: Buffer) => {
    for (const change of changes) change(toc);
  };
}

const FILE = S_IF.file | 0o644;
const BROKEN: [what: string, change: (toc: Buffer) => unknown, message: RegExp][] = [
  ['magic', header(HEADER.magic, 1), /magic/],
  ['version', header(HEADER.version, 2), /version 2/],
  ['no rows', header(HEADER.rows, 0), /contentsOffset/],
  ['rows that overflow', header(HEADER.rows, 2 ** 32 - 1), /contentsOffset/],
  ['contents past the end', header(HEADER.contents, 2 ** 32 - 1), /xattrsOffset/],
  ['rowsOffset', header(HEADER.rowsOffset, 0), /rowsOffset/],
  ['xattrs past the end', header(HEADER.xattrsBytes, 2 ** 32 - 1), /namesOffset/],
  ['names past the end', header(HEADER.namesBytes, 2 ** 32 - 1), /fileBytes/],
  ['fileBytes', header(HEADER.fileBytes, 64), /fileBytes/],
  ['reserved', header(HEADER.reserved, 1), /reserved/],
  ['parts', header(HEADER.parts, 9), /parts is 9/],
  ['inodes', header(HEADER.inodes, 9), /inodes is 9/],
  ['totalBytes', header(HEADER.totalBytes, 9), /totalBytes/],
  ['totalBytes, high half', header(HEADER.totalBytes + 4, 9), /totalBytes/],
  ['a root that is a file', row(0, ROW.mode, FILE), /row 0: mode/],
  ['a root with a name', row(0, ROW.nameLength, 1, 2), /row 0: name/],
  ['a root with a name offset', row(0, ROW.nameOffset, 1), /row 0: nameOffset/],
  ['a root inside another directory', row(0, ROW.parent, 1), /row 0: parent/],
  ['a directory inside itself', row(1, ROW.parent, 1), /row 1: parent is 1/],
  ['a cycle of directories', all(row(1, ROW.a, 1), row(10, ROW.a, 1)), /row 1: a \(first child\)/],
  ['a parent further on', row(1, ROW.parent, 10), /row 1: parent is 10/],
  ['a wrong parent', row(12, ROW.parent, 11), /row 12: parent is 11/],
  ['children past the end', row(11, ROW.b, 2), /row 11: b \(children\)/],
  ['children that overflow', row(11, ROW.b, 2 ** 32 - 1), /row 11: b \(children\)/],
  ['too few children', row(11, ROW.b, 0), /row 11: a \(first child\)/],
  ['rows that nobody names', all(row(11, ROW.b, 0), row(11, ROW.a, 0)), /row 13: parent/],
  ['too few children of the root', row(0, ROW.b, 8), /row 1: a \(first child\) is 10, not 9/],
  ['an empty name', row(3, ROW.nameLength, 0, 2), /row 3: nameLength/],
  ['a name too long', row(3, ROW.nameLength, 256, 2), /row 3: nameLength/],
  ['a name past the end', row(3, ROW.nameOffset, 2 ** 32 - 1), /row 3: nameOffset/],
  ['a name that ends outside', row(13, ROW.nameLength, 255, 2), /row 13: nameOffset/],
  ['a name with a slash', name(3, 2, 0x2f), /row 3: name: holds \//],
  ['a name with NUL', name(3, 4, 0), /row 3: name: holds NUL/],
  ['.', all(name(12, 0, 0x2e)), /row 12: name: is \.$/],
  ['..', all(row(13, ROW.nameLength, 2, 2), name(13, 0, 0x2e), name(13, 1, 0x2e)), /is \.\.$/],
  ['names out of order', name(4, 0, 0x61), /row 4: name: not greater/],
  ['a name twice', (toc) => new Toc(toc).nameBytes(2).write('dev'), /row 2: name: not greater/],
  ['a mode with more bits', row(3, ROW.mode, 0x1ffff), /row 3: mode/],
  ['a type of 0', row(3, ROW.mode, 0o644), /row 3/],
  ['an unknown type', row(4, ROW.mode, 0o050644), /row 4: mode: unknown type/],
  ['nanoseconds', row(3, ROW.mtimeNsec, 1_000_000_000), /row 3: mtimeNsec/],
  ['seconds', row(3, ROW.mtimeSec + 4, 0x7fffffff), /row 3: mtimeSec/],
  ['negative seconds', row(3, ROW.mtimeSec + 4, 0x80000000), /row 3: mtimeSec/],
  ['a size of 2^53', row(12, ROW.size + 4, 2 ** 21), /row 12: size/],
  ['a size that is not the content’s', row(12, ROW.size, 2), /row 12: size/],
  ['an empty file with a size', row(3, ROW.size, 2), /row 3: a \(content\)/],
  ['a file with a size and no content', row(12, ROW.a, NONE), /row 12: a \(content\)/],
  ['a content past the end', row(12, ROW.a, 2), /row 12: a \(content\)/],
  ['a content before its turn', row(5, ROW.a, 1), /row 5: a \(content\)/],
  ['a content that nobody uses', all(row(12, ROW.a, NONE), row(12, ROW.size, 0)), /contents is 2/],
  ['a file with children', row(12, ROW.b, 1), /row 12: b/],
  ['a device with a size', row(8, ROW.size, 1), /row 8: size/],
  ['a fifo with a number', row(4, ROW.a, 1), /row 4: a/],
  ['a directory of another size', row(2, ROW.size, 0), /row 2: size/],
  ['an empty target', all(row(7, ROW.b, 0), row(7, ROW.size, 0)), /row 7: b \(target/],
  ['a target too long', all(row(7, ROW.b, 4096), row(7, ROW.size, 4096)), /row 7: b \(target/],
  ['a target past the end', row(7, ROW.a, 2 ** 32 - 1), /row 7: a/],
  ['a target of another size', row(7, ROW.size, 3), /row 7: size/],
  ['a target with NUL', (toc) => new Toc(toc).target(7).fill(0, 3, 4), /row 7: target/],
  ['nlink of a file', row(12, ROW.nlink, 2), /row 12: nlink is 2, not 1/],
  ['nlink of hard links', all(row(5, ROW.nlink, 3), row(6, ROW.nlink, 3)), /row 5: nlink is 3/],
  ['nlink of a directory', row(1, ROW.nlink, 2), /row 1: nlink is 2, not 3/],
  ['an inode that comes later', row(5, ROW.inode, 6), /row 5: inode/],
  ['an inode past the end', row(5, ROW.inode, NONE), /row 5: inode/],
  ['a hard link to a directory', row(2, ROW.inode, 1), /row 2: inode/],
  ['a hard link to a link', row(9, ROW.inode, 6), /row 9: inode/],
  ['a hard link with another owner', row(6, ROW.uid, 7), /row 6: byte 12 differs/],
  ['a hard link with other xattrs', row(6, ROW.xattrs, NONE), /row 6: byte 60 differs/],
  ['an xattr set past the end', row(5, ROW.xattrs, 999), /row 5: xattrs/],
  ['an xattr set begun in the middle', row(5, ROW.xattrs, 2), /row 5: xattrs/],
  ['an xattr set without end', xattr(0, 9, 2), /xattr set at 0/],
  ['an empty xattr set', xattr(0, 0, 2), /xattr set at 0: count/],
  ['a long xattr name', xattr(2, 256, 2), /xattr set at 0: entry 0: name length/],
  ['no xattr name', xattr(2, 0, 2), /xattr set at 0: entry 0: name length/],
  ['a long xattr value', xattr(4, 65537, 4), /xattr set at 0: entry 0: value length/],
  ['an xattr value past the end', xattr(4, 65536, 4), /xattr set at 0: entry 0 ends outside/],
  ['an xattr name with NUL', xattr(9, 0, 1), /entry 0: name holds NUL/],
  ['xattrs out of order', xattr(13, 0x63, 1), /entry 1: name not greater/],
  ['contents: firstPart', content(1, CONTENT.firstPart, 1), /content 1: firstPart/],
  ['contents: firstRow', content(1, CONTENT.firstRow, 3), /content 1: firstRow/],
  [
    'more parts than anyone keeps count of',
    all(row(12, ROW.size + 4, 1 << 20), content(1, CONTENT.size + 4, 1 << 20)),
    /content 1: more than \d+ parts/,
  ],
  ['contents: size', content(1, CONTENT.size, 7), /row 12: size/],
];

for (const [what, change, message] of BROKEN) {
  test(`checkToc refuses ${what}`, (t) => {
    const toc = good();
    change(toc);
    const error = t.throws(() => checkToc(toc), { instanceOf: FirstlightError, message });
    t.is(error.kind, 'corrupt');
  });
}

test('checkToc refuses every truncation and every longer table', (t) => {
  const toc = good();
  for (let bytes = 0; bytes < toc.length; bytes++)
    t.throws(() => checkToc(toc.subarray(0, bytes)), { instanceOf: FirstlightError });
  t.throws(() => checkToc(Buffer.concat([toc, Buffer.alloc(1)])), { message: /fileBytes/ });
});

test('a changed byte of a packed TOC is refused or gives a table that checkToc can judge', (t) => {
  const packed = packToc(imageOf(everything).toc);
  for (let at = 0; at < packed.length; at++) {
    for (const bit of [0x01, 0x10, 0x80, 0xff]) {
      const changed = Buffer.from(packed);
      changed[at]! ^= bit;
      try {
        const toc = checkToc(unpackToc(changed));
        t.true(toc.rows > 0);
      } catch (error) {
        t.true(error instanceof FirstlightError && error.kind === 'corrupt', String(error));
      }
    }
  }
});

test('a truncated packed TOC is refused', (t) => {
  const packed = packToc(imageOf(everything).toc);
  for (let bytes = 0; bytes < packed.length; bytes++) {
    const error = t.throws(() => unpackToc(packed.subarray(0, bytes)), {
      instanceOf: FirstlightError,
    });
    t.is(error.kind, 'corrupt');
  }
});

test('buildToc refuses what no table can hold', (t) => {
  const contents = new Map<string, Buffer>();
  const late = makeTree({ a: { mtimeSec: 2 ** 52 } }, contents);
  t.throws(() => buildToc(late), { message: /mtime of a/ });
  const odd = makeTree({ a: { data: 'one' }, b: { data: 'two' } }, contents);
  const [a, b] = [...odd.children!.values()];
  b!.inode.digest = a!.inode.digest!;
  b!.inode.size = 9;
  t.throws(() => buildToc(odd), { message: /two sizes/ });
});

test('a table is built in steps between which the event loop runs', async (t) => {
  const entries: Record<string, Spec> = {};
  for (let i = 0; i < 5000; i++) entries[`f${i}`] = { data: `content ${i}` };
  const tree = makeTree({ d: { entries } }, new Map());
  let turns = 0;
  let counting = true;
  const count = () => {
    turns++;
    if (counting) setImmediate(count);
  };
  setImmediate(count);
  const built = await buildTocInSteps(tree);
  counting = false;
  t.deepEqual(built, buildToc(tree));
  t.true(turns >= 5, `${turns} turns`);
  const aborter = new AbortController();
  const reason = new Error('no longer wanted');
  const building = buildTocInSteps(tree, aborter.signal);
  aborter.abort(reason);
  t.is(await t.throwsAsync(building), reason);
});

test('packToc refuses a good table whose names stand in another order than the builder’s', (t) => {
  const { toc } = imageOf({ a: { data: '1' }, b: { data: '2' } });
  const bytes = Buffer.from(toc.bytes);
  const names = bytes.readUInt32LE(HEADER.namesOffset);
  bytes.write('ba', names);
  row(1, ROW.nameOffset, 1)(bytes);
  row(2, ROW.nameOffset, 0)(bytes);
  t.notThrows(() => checkToc(bytes));
  const error = t.throws(() => packToc(new Toc(bytes)), { instanceOf: FirstlightError });
  t.is(error.kind, 'internal');
});

/** A packed TOC taken apart: its three counts and its columns. */
function apart(packed: Buffer) {
  const reader = new VarintReader(packed, 'TOC');
  const counts = [reader.unsigned(), reader.unsigned(), reader.unsigned()];
  const lengths = STREAMS.map(() => reader.unsigned());
  return { counts, columns: lengths.map((length): Buffer => Buffer.from(reader.raw(length))) };
}

function together({ counts, columns }: ReturnType<typeof apart>): Buffer {
  const writer = new VarintWriter();
  for (const count of counts) writer.unsigned(count);
  for (const column of columns) writer.unsigned(column.length);
  for (const column of columns) writer.raw(column);
  return Buffer.from(writer.done());
}

for (const [i, count] of ['rows', 'contents', 'bytes of names'].entries()) {
  test(`unpackToc refuses a wrong number of ${count}`, (t) => {
    for (const by of [-1, 1]) {
      const packed = apart(packToc(imageOf(everything).toc));
      packed.counts[i]! += by;
      t.throws(() => unpackToc(together(packed)), { instanceOf: FirstlightError });
    }
  });
}

for (const [i, stream] of STREAMS.entries()) {
  test(`a packed TOC is refused with a longer or a shorter column of ${stream}`, (t) => {
    for (const resize of [
      (column: Buffer) => Buffer.concat([column, Buffer.from([1])]),
      (column: Buffer) => column.subarray(0, -1),
    ]) {
      const packed = apart(packToc(imageOf(everything).toc));
      t.true(packed.columns[i]!.length > 0, 'the tree has something in every column');
      packed.columns[i] = resize(packed.columns[i]!);
      t.throws(() => checkToc(unpackToc(together(packed))), { instanceOf: FirstlightError });
    }
  });
}
