import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { sha256Digest } from './digest.ts';
import { mergeImage } from './merge.ts';
import { imageOf, MemorySink, merge, names, type Packed, pack } from './testkit.ts';

const layers = async (...lists: string[][]) =>
  merge(await Promise.all(lists.map((list) => pack(names(...list)))));

async function refused(promise: Promise<unknown>, kind: string, message: RegExp) {
  try {
    await promise;
  } catch (error) {
    if (!(error instanceof FirstlightError)) throw error;
    if (error.kind === kind && message.test(error.line)) return true;
    throw error;
  }
  throw new Error('was not refused');
}

test('a whiteout removes a file and a whole directory of the lower layer', async (t) => {
  const image = await layers(['a/', 'a/x', 'a/y', 'b/', 'b/c/', 'b/c/d'], ['a/.wh.x', '.wh.b']);
  t.deepEqual(image.paths(), ['a/', 'a/y']);
});

test('a whiteout never removes an entry of its own layer, whatever the order', async (t) => {
  const one = await layers(['d/', 'd/old', 'f 1'], ['.wh.d', 'd/', 'd/new', '.wh.f', 'f 2']);
  const two = await layers(['d/', 'd/old', 'f 1'], ['d/', 'd/new', 'f 2', '.wh.f', '.wh.d']);
  for (const image of [one, two]) {
    t.deepEqual(image.paths(), ['d/', 'd/new', 'f']);
    t.is(image.text('f'), '2');
  }
});

test('a whited-out directory whose new one has no entry gets default attributes in either order', async (t) => {
  const lower = await pack([{ name: 'd/', type: 'directory', mode: 0o700, uid: 7 }]);
  for (const list of [
    ['.wh.d', 'd/new'],
    ['d/new', '.wh.d'],
  ]) {
    const image = await merge([lower, await pack(names(...list))]);
    t.like(image.at('d'), { mode: 0o755, uid: 0, layer: 1 });
    t.deepEqual(image.paths(), ['d/', 'd/new']);
  }
});

test('an opaque directory hides lower children, keeps its own, and its attributes', async (t) => {
  const lower = await pack([
    { name: 'd/', type: 'directory', mode: 0o711 },
    ...names('d/x', 'd/e/', 'd/e/y'),
  ]);
  for (const list of [
    ['d/.wh..wh..opq', 'd/z'],
    ['d/z', 'd/.wh..wh..opq'],
  ]) {
    const image = await merge([lower, await pack(names(...list))]);
    t.deepEqual(image.paths(), ['d/', 'd/z']);
    t.is(image.at('d').mode, 0o711);
  }
});

test('an opaque root empties the image below it', async (t) => {
  const image = await layers(['a', 'b/', 'b/c'], ['.wh..wh..opq', 'n']);
  t.deepEqual(image.paths(), ['n']);
});

test('a whiteout of a name that is not there changes nothing, and makes no directory', async (t) => {
  const image = await layers(['a', 'f'], ['.wh.q', 'gone/.wh.q', 'gone/.wh..wh..opq', 'f/.wh.q']);
  t.deepEqual(image.paths(), ['a', 'f']);
});

test('aufs notes are ignored, files with .wh inside their name are not', async (t) => {
  const image = await layers(
    ['a'],
    ['.wh..wh.plnk/', '.wh..wh.plnk/1.2', '.wh..wh.aufs', 'a.wh.b'],
  );
  t.deepEqual(image.paths(), ['a', 'a.wh.b']);
});

test('a whiteout reaches through several layers, and a later layer can bring the name back', async (t) => {
  const image = await layers(['d/', 'd/1'], ['d/2'], ['.wh.d'], ['d/3']);
  t.deepEqual(image.paths(), ['d/', 'd/3']);
});

test('a file replaces a directory, and a directory a file', async (t) => {
  const image = await layers(['d/', 'd/x', 'f'], ['d new', 'f/', 'f/y']);
  t.deepEqual(image.paths(), ['d', 'f/', 'f/y']);
  t.is(image.text('d'), 'new');
});

test('inside a layer the last of two entries wins, and a directory that was a file starts empty', async (t) => {
  const image = await layers(
    ['d/', 'd/x'],
    ['d gone', 'd/', 'd/y', 'f 1', 'f 2', 'g/', 'g/x', 'g 3'],
  );
  t.deepEqual(image.paths(), ['d/', 'd/y', 'f', 'g']);
  t.is(image.text('f'), '2');
});

test('a directory over a directory keeps the children and takes the new attributes', async (t) => {
  const xattr = { 'SCHILY.xattr.user.a': '1' };
  const image = await merge([
    await pack([
      { name: 'd/', type: 'directory', mode: 0o700, pax: { ...xattr, mtime: '5.5' } },
      ...names('d/x'),
    ]),
    await pack([
      { name: 'd/', type: 'directory', mode: 0o1777, uid: 3, gid: 4, pax: { mtime: '9' } },
    ]),
  ]);
  t.deepEqual(image.paths(), ['d/', 'd/x']);
  t.like(image.at('d'), { mode: 0o1777, uid: 3, gid: 4, mtimeSec: 9, mtimeNsec: 0, layer: 1 });
  t.is(image.at('d').xattrs, undefined);
});

test('a directory that a layer only passes through keeps its lower attributes', async (t) => {
  const image = await merge([
    await pack([{ name: 'd', type: 'directory', mode: 0o2750, uid: 5 }]),
    await pack(names('d/x')),
  ]);
  t.like(image.at('d'), { mode: 0o2750, uid: 5, layer: 0 });
});

test('a missing parent is made, 0755 and root, time 0', async (t) => {
  const image = await layers(['a/b/c']);
  t.deepEqual(image.paths(), ['a/', 'a/b/', 'a/b/c']);
  t.like(image.at('a/b'), { type: 'dir', mode: 0o755, uid: 0, gid: 0, mtimeSec: 0, mtimeNsec: 0 });
});

test('the entry ./ gives the root its attributes', async (t) => {
  const image = await merge([
    await pack([{ name: './', type: 'directory', mode: 0o711, uid: 9 }, ...names('./a/', './a/b')]),
  ]);
  t.like(image.at(''), { mode: 0o711, uid: 9 });
  t.deepEqual(image.paths(), ['a/', 'a/b']);
});

test('a leading slash means the root of the image', async (t) => {
  const image = await layers(['/', '/app/', '/app//x', 'app/./y']);
  t.deepEqual(image.paths(), ['app/', 'app/x', 'app/y']);
});

test('hard links in a layer and to a lower layer share one inode', async (t) => {
  const image = await layers(['a', 'b = a', 's -> a', 'r = s'], ['d/', 'd/c = a', 'd/e = ./d/c']);
  t.is(image.at('a'), image.at('b'));
  t.is(image.at('a'), image.at('d/c'));
  t.is(image.at('a'), image.at('d/e'));
  t.is(image.at('s'), image.at('r'));
  t.is(image.at('a').layer, 0);
  t.is(image.sink.puts, 1);
});

test('a hard link keeps what it named when the name is replaced later in the layer', async (t) => {
  const image = await layers(['a old'], ['b = a', 'a new', 'c = a']);
  t.is(image.text('b'), 'old');
  t.is(image.text('a'), 'new');
  t.is(image.at('c'), image.at('a'));
});

test('a hard link to a lower file that the layer whites out keeps the file', async (t) => {
  for (const list of [
    ['.wh.a', 'b = a'],
    ['b = a', '.wh.a'],
  ]) {
    const image = await layers(['a x'], list);
    t.deepEqual(image.paths(), ['b']);
    t.is(image.text('b'), 'x');
  }
});

test('a hard link is found through symlinked directories of lower layers', async (t) => {
  const image = await layers(['usr/', 'usr/lib/', 'usr/lib/x', 'lib -> /usr/lib'], ['y = lib/x']);
  t.is(image.at('y'), image.at('usr/lib/x'));
});

test('a hard link to nothing, or to a directory, is refused', async (t) => {
  t.true(await refused(layers(['a = b']), 'corrupt', /layer 1 of 1 .*"a".*hard link to "b"/));
  t.true(await refused(layers(['d/', 'a = d']), 'corrupt', /hard link to the directory "d"/));
  t.true(
    await refused(layers(['a = ../x']), 'corrupt', /link target is bad: the path has a '\.\.'/),
  );
});

test('a parent that is a symlink of the same layer is followed inside the tree, never out of it', async (t) => {
  const image = await layers(['usr/', 'lib -> usr/lib', 'lib/x', 'up -> ../../..', 'up/etc/y']);
  t.deepEqual(image.paths(), ['etc/', 'etc/y', 'lib', 'up', 'usr/', 'usr/lib/', 'usr/lib/x']);
  t.true(await refused(layers(['a -> b', 'b -> a', 'a/x']), 'corrupt', /loop of symlinks/));
});

test('a parent that is a symlink or a file in a lower layer is replaced by a directory', async (t) => {
  const image = await layers(['usr/lib/x', 'lib -> usr/lib', 'f'], ['lib/y', 'f/z']);
  t.deepEqual(image.paths(), ['f/', 'f/z', 'lib/', 'lib/y', 'usr/', 'usr/lib/', 'usr/lib/x']);
  t.like(image.at('lib'), { type: 'dir', mode: 0o755 });
});

test('a parent that is a file of the same layer is refused', async (t) => {
  t.true(
    await refused(layers(['a', 'a/b']), 'corrupt', /"a\/b": its parent "a" is not a directory/),
  );
});

test('special files keep mode bits and device numbers', async (t) => {
  const image = await merge([
    await pack([
      { name: 'su', body: 'x', mode: 0o4755 },
      { name: 'sg', body: 'x', mode: 0o2755 },
      { name: 'tmp/', type: 'directory', mode: 0o1777 },
      { name: 'null', type: 'character-device', devmajor: 1, devminor: 3, mode: 0o666 },
      { name: 'sda', type: 'block-device', devmajor: 4095, devminor: 0x3ffff },
      { name: 'pipe', type: 'fifo', mode: 0o600 },
      { name: 'empty', body: '' },
    ]),
  ]);
  t.is(image.at('su').mode, 0o4755);
  t.is(image.at('sg').mode, 0o2755);
  t.is(image.at('tmp').mode, 0o1777);
  t.like(image.at('null'), { type: 'char', major: 1, minor: 3, mode: 0o666 });
  t.like(image.at('sda'), { type: 'block', major: 4095, minor: 0x3ffff });
  t.is(image.at('pipe').type, 'fifo');
  t.like(image.at('empty'), { type: 'file', size: 0 });
  t.is(image.at('empty').digest, undefined);
});

const bad: [string, Packed[], RegExp][] = [
  [
    '..',
    names('a/../../b'),
    /layer 1 of 1 \(sha256:[0-9a-f]{12}\): bad entry "a\/\.\.\/\.\.\/b".*'\.\.'/,
  ],
  ['.. inside', names('a/../b'), /has a '\.\.'/],
  ['NUL', [{ name: 'x', pax: { path: 'a\0b' } }], /has a NUL/],
  ['empty', [{ name: 'x', pax: { 'GNU.sparse.name': '' } }, { name: '' }], /the name is empty/],
  ['long', names('n'.repeat(256)), /longer than 255 bytes/],
  ['long parent', names(`${'n'.repeat(256)}/x`), /longer than 255 bytes/],
  ['root file', [{ name: './', type: 'symlink', linkname: 'x' }], /root is not a directory/],
  ['no target', [{ name: 'a', type: 'symlink', linkname: '' }], /symlink to nothing/],
  [
    'NUL target',
    [{ name: 'a', type: 'symlink', linkname: 'q', pax: { linkpath: 'a\0' } }],
    /a NUL/,
  ],
  ['long target', names(`a -> ${'t/'.repeat(2048)}`), /longer than 4095/],
  ['whiteout of ..', names('d/.wh...'), /names nothing/],
  ['below a whiteout', names('.wh.d/x'), /has entries below it/],
  ['device', [{ name: 'd', type: 'block-device', devmajor: 4096, devminor: 0 }], /does not fit/],
  ['uid', [{ name: 'd', pax: { uid: '-1' } }], /impossible uid/],
];
for (const [title, entries, message] of bad) {
  test(`refused, naming layer and path: ${title}`, async (t) => {
    t.true(await refused(merge([await pack(entries)]), 'corrupt', message));
  });
}

test('a name of 255 bytes and a path deeper than the JavaScript stack are taken', async (t) => {
  const deep = 'a/'.repeat(30000);
  const image = await layers(['n'.repeat(255), `${deep}f`], [`${deep}g`]);
  t.true(image.has('n'.repeat(255)));
  t.true(image.has(`${deep}f`));
  t.true(image.has(`${deep}g`));
});

test('gzip, zstd of several frames with skippable ones, and plain layers give the same tree', async (t) => {
  const plain = await pack(names('a/', ...Array.from({ length: 200 }, (_, i) => `a/${i}`)));
  const skippable = Buffer.from('502a4d1803000000616263', 'hex');
  const half = plain.length / 2;
  const blobs = [
    gzipSync(plain),
    Buffer.concat([gzipSync(plain.subarray(0, half)), gzipSync(plain.subarray(half))]),
    zstdCompressSync(plain),
    Buffer.concat([
      skippable,
      zstdCompressSync(plain.subarray(0, half)),
      skippable,
      zstdCompressSync(plain.subarray(half)),
      skippable,
    ]),
    plain,
  ];
  const wanted = (await merge([plain])).paths();
  for (const blob of blobs) {
    const sink = new MemorySink();
    await mergeImage(imageOf([blob], [sha256Digest(plain)]), sink);
    t.is(sink.puts, 200);
    const image = await mergeImage(imageOf([blob], [sha256Digest(plain)]), sink);
    t.is(image.root.children!.get('a')!.children!.size, wanted.length - 1);
  }
});

test('cut and damaged layers are refused in every compression, and say which layer', async (t) => {
  const plain = await pack([{ name: 'a', body: Buffer.alloc(200_000, 'abc') }]);
  for (const blob of [gzipSync(plain), zstdCompressSync(plain), plain]) {
    for (const at of [3, blob.length >> 1, blob.length - 1]) {
      const image = imageOf([await pack([]), blob.subarray(0, at)]);
      image.layers[1]!.diffId = sha256Digest(plain);
      t.true(await refused(mergeImage(image, new MemorySink()), 'corrupt', /layer 2 of 2/));
    }
    const flipped = Buffer.from(blob);
    flipped[flipped.length >> 1]! ^= 0x40;
    const image = imageOf([flipped], [sha256Digest(plain)]);
    t.true(await refused(mergeImage(image, new MemorySink()), 'corrupt', /layer 1 of 1/));
  }
});

test('a wrong diff id is refused, also where only bytes behind the archive differ', async (t) => {
  const plain = await pack(names('a'));
  const image = imageOf([Buffer.concat([plain, Buffer.from('more')])], [sha256Digest(plain)]);
  t.true(
    await refused(mergeImage(image, new MemorySink()), 'corrupt', /uncompressed: the digest is/),
  );
});

test('an empty layer and one without end blocks are taken', async (t) => {
  const plain = await pack(names('a'));
  const image = await merge([
    Buffer.alloc(0),
    plain.subarray(0, plain.length - 1024),
    Buffer.alloc(1024),
  ]);
  t.deepEqual(image.paths(), ['a']);
});

test('bzip2 and xz are refused by name', async (t) => {
  t.true(await refused(merge([Buffer.from('BZh91AY&SY')]), 'unsupported', /bzip2/));
  t.true(await refused(merge([Buffer.from('fd377a585a0000', 'hex')]), 'unsupported', /xz/));
});

test('an error of the sink ends the merge with that error', async (t) => {
  const plain = await pack(names('a', 'b'));
  for (const concurrency of [1, 4]) {
    let puts = 0;
    const sink = {
      async put(): Promise<string> {
        puts++;
        throw new FirstlightError('no-space', 'the disk is full');
      },
    };
    t.true(await refused(mergeImage(imageOf([plain]), sink, { concurrency }), 'no-space', /full/));
    t.true(puts <= 2);
  }
});

test('a sink that does not read a content to its end does not shift the next one', async (t) => {
  const plain = await pack([
    { name: 'a', body: Buffer.alloc(300_000, 'a') },
    { name: 'b', body: 'b' },
  ]);
  const seen: string[] = [];
  const sink = {
    async put(content: Readable, bytes: number): Promise<string> {
      for await (const chunk of content) {
        seen.push(`${bytes} ${String.fromCharCode((chunk as Buffer)[0]!)}`);
        break;
      }
      return createHash('sha256').update(String(bytes)).digest('hex');
    },
  };
  await mergeImage(imageOf([plain]), sink);
  t.deepEqual(seen, ['300000 a', '1 b']);
});

test('an error of the blob in the middle of a content ends the merge, even if the sink is careless', async (t) => {
  const plain = await pack([{ name: 'a', body: Buffer.alloc(300_000, 'a') }]);
  const image = imageOf([plain]);
  image.layers[0]!.open = async () =>
    Readable.from(
      (function* () {
        yield plain.subarray(0, 100_000);
        throw new FirstlightError('unreachable', 'the line is cut');
      })(),
    );
  const careless = {
    put: (content: Readable) =>
      new Promise<string>((resolve) => {
        content.on('close', () => resolve('0'.repeat(64)));
        content.resume();
      }),
  };
  t.true(await refused(mergeImage(image, careless), 'unreachable', /cut/));
});

test('an abort ends the merge, also while the blob waits for its network', async (t) => {
  const plain = await pack(names('a'));
  const image = imageOf([plain]);
  let destroyed = false;
  image.layers[0]!.open = async () =>
    new Readable({
      read() {},
      destroy(error, done) {
        destroyed = true;
        done(error);
      },
    });
  const abort = new AbortController();
  setTimeout(() => abort.abort(new FirstlightError('timeout', 'enough')), 20);
  const merging = mergeImage(image, new MemorySink(), { signal: abort.signal });
  t.true(await refused(merging, 'timeout', /enough/));
  t.true(destroyed);
});

test('small contents are put a few at a time where asked for, with the same result', async (t) => {
  const plain = await pack(names('d/', ...Array.from({ length: 50 }, (_, i) => `d/${i}`)));
  let now = 0;
  let most = 0;
  const four = Promise.withResolvers<void>();
  // For want of a fourth.
  const alone = setTimeout(four.resolve, 60_000);
  class Slow extends MemorySink {
    override async put(content: Readable, bytes: number): Promise<string> {
      most = Math.max(most, ++now);
      if (now === 4) four.resolve();
      await four.promise;
      // Time for a fifth.
      await new Promise((resolve) => setTimeout(resolve, 2));
      const digest = await super.put(content, bytes);
      now--;
      return digest;
    }
  }
  const sink = new Slow();
  const { root } = await mergeImage(imageOf([plain]), sink, { concurrency: 4 });
  clearTimeout(alone);
  t.is(most, 4);
  for (const { name, inode } of root.children!.get('d')!.children!.values()) {
    t.is(sink.contents.get(inode.digest!)!.toString(), `content of d/${name}`);
  }
});

test('progress reaches the sum of the blobs, and each layer is told once', async (t) => {
  const one = await pack([{ name: 'a', body: Buffer.alloc(3 << 20, 'a') }]);
  const two = await pack(names('b', '.wh.a'));
  const done: number[] = [];
  const told: [number, number, number][] = [];
  await merge([one, two], {
    onProgress: ({ bytesDone, bytes }) => done.push(bytesDone / bytes),
    onLayer: ({ index, entries, contentBytes }) => told.push([index, entries, contentBytes]),
  });
  t.deepEqual(told, [
    [0, 1, 3 << 20],
    [1, 2, 'content of b'.length],
  ]);
  t.is(done.at(-1), 1);
  t.deepEqual(
    done,
    [...done].sort((x, y) => x - y),
  );
  t.true(done.length >= 4);
});
