// The tar reader against archives of GNU tar and against headers made by hand.
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, open, readFile, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { promisify } from 'node:util';
import test from 'ava';
import fc from 'fast-check';
import { ByteReader } from './byte-reader.ts';
import { type TarEntry, TarReader } from './tar.ts';
import { pack } from './testkit.ts';

const run = promisify(execFile);

type Read = TarEntry & { body: Buffer };

/** All entries of an archive with their bodies, read in chunks of `chunk` bytes. */
async function read(tar: Buffer, chunk = 1000): Promise<Map<string, Read>> {
  function* chunks() {
    for (let at = 0; at < tar.length; at += chunk) yield tar.subarray(at, at + chunk);
  }
  const reader = new TarReader(new ByteReader(Readable.from(chunks())));
  const found = new Map<string, Read>();
  for (let entry = await reader.next(); entry !== undefined; entry = await reader.next()) {
    const body = entry.size > 0 ? await buffer(reader.body()) : Buffer.alloc(0);
    found.set(entry.name, { ...entry, body });
  }
  return found;
}

/** A header block; fields are given as they stand in it. */
function header(fields: Record<string, string | Buffer>): Buffer {
  const at: Record<string, number> = {
    name: 0,
    mode: 100,
    uid: 108,
    gid: 116,
    size: 124,
    mtime: 136,
    flag: 156,
    linkname: 157,
    magic: 257,
    devmajor: 329,
    devminor: 337,
    prefix: 345,
    sparse: 386,
    more: 482,
    real: 483,
    trailer: 508,
  };
  const block = Buffer.alloc(512);
  for (const [field, value] of Object.entries({ magic: 'ustar\x0000', ...fields })) {
    Buffer.from(value as string, 'latin1').copy(block, at[field]!);
  }
  block.fill(' ', 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
}

function padded(body: Buffer): Buffer {
  return Buffer.concat([body, Buffer.alloc((512 - (body.length % 512)) % 512)]);
}

/** A pax record with a value of bytes. */
function record(key: string, value: Buffer | string): Buffer {
  const tail = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
  let length = tail.length;
  while (String(length).length + tail.length !== length)
    length = String(length).length + tail.length;
  return Buffer.concat([Buffer.from(String(length)), tail]);
}

/** An extended header and the entry that it describes. */
function withPax(records: Buffer[], entry: Buffer, flag = 'x'): Buffer {
  const data = Buffer.concat(records);
  const size = data.length.toString(8).padStart(11, '0');
  return Buffer.concat([header({ name: 'pax', flag, size }), padded(data), entry]);
}

const END = Buffer.alloc(1024);

async function inTemp<T>(body: (dir: string) => Promise<T>): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-tar-'));
  try {
    return await body(dir);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** Runs GNU tar over `dir`/tree and gives the archive. */
async function gnuTar(dir: string, ...args: string[]): Promise<Buffer> {
  const file = join(dir, 'out.tar');
  await run('tar', ['-C', join(dir, 'tree'), '-cf', file, ...args, '.']);
  return readFile(file);
}

async function holes(path: string, size: number, pieces: [number, Buffer][]): Promise<Buffer> {
  const whole = Buffer.alloc(size);
  const file = await open(path, 'w');
  for (const [offset, data] of pieces) {
    data.copy(whole, offset);
    await file.write(data, 0, data.length, offset);
  }
  await file.truncate(size);
  await file.close();
  return whole;
}

test('sparse files of every GNU format come out whole', async (t) => {
  await inTemp(async (dir) => {
    const tree = join(dir, 'tree');
    await mkdir(tree);
    const block = Buffer.alloc(4096, 'data');
    // 60 pieces: more than the 4 of the header and the 21 of an extension block.
    const many = Array.from({ length: 60 }, (_, i): [number, Buffer] => [i * 65536, block]);
    const wanted = {
      './many': await holes(join(tree, 'many'), 60 * 65536, many),
      './end-hole': await holes(join(tree, 'end-hole'), 300_001, [[0, block]]),
      './all-hole': await holes(join(tree, 'all-hole'), 1 << 20, []),
      './start-hole': await holes(join(tree, 'start-hole'), 204_800, [[200_704, block]]),
      './next': Buffer.from('after the sparse ones'),
    };
    await writeFile(join(tree, 'next'), wanted['./next']);
    for (const format of [
      ['--format=gnu'],
      ['--format=oldgnu'],
      ['--format=pax', '--sparse-version=0.0'],
      ['--format=pax', '--sparse-version=0.1'],
      ['--format=pax', '--sparse-version=1.0'],
    ]) {
      const tar = await gnuTar(dir, '-S', '--sort=name', ...format);
      t.true(tar.length < 1 << 20, `${format.join(' ')} was not sparse`);
      const found = await read(tar, 1337);
      for (const [name, bytes] of Object.entries(wanted)) {
        const entry = found.get(name);
        t.is(entry?.size, bytes.length, `${format.join(' ')} ${name}`);
        t.true(entry!.body.equals(bytes), `${format.join(' ')} ${name}`);
      }
    }
  });
});

test('names, link targets and hard links beyond 100 bytes, and bytes that are no UTF-8', async (t) => {
  await inTemp(async (dir) => {
    const tree = join(dir, 'tree');
    const long = `${'d'.repeat(120)}/${'e'.repeat(200)}`;
    await mkdir(join(tree, long), { recursive: true });
    await writeFile(join(tree, long, 'f'), 'x');
    await symlink('t'.repeat(3000), join(tree, 'sym'));
    await symlink('ü', join(tree, 'utf8'));
    const odd = Buffer.concat([
      Buffer.from(`${tree}/`),
      Buffer.from([0x6f, 0xff, 0xfe, 0x0a, 0x64]),
    ]);
    await writeFile(odd, 'odd');
    await run('ln', [join(tree, long, 'f'), join(tree, 'zz-link')]);
    for (const format of ['gnu', 'pax']) {
      const found = await read(await gnuTar(dir, `--format=${format}`, '--sort=name'));
      t.is(found.get(`./${long}/f`)?.body.toString(), 'x', format);
      t.is(found.get('./sym')?.linkname, 't'.repeat(3000), format);
      t.is(found.get('./utf8')?.linkname, '\xc3\xbc', format);
      t.is(found.get('./o\xff\xfe\nd')?.body.toString(), 'odd', format);
      t.like(found.get('./zz-link'), { type: 'link', linkname: `./${long}/f`, size: 0 }, format);
    }
  });
});

test('pax times of GNU tar are exact to the nanosecond', async (t) => {
  await inTemp(async (dir) => {
    const tree = join(dir, 'tree');
    await mkdir(tree);
    const times = { a: '@1700000000.123456789', b: '@-1.250000000', c: '@0.000000001', d: '@-3' };
    for (const [name, time] of Object.entries(times)) {
      await writeFile(join(tree, name), '');
      await run('touch', ['-d', time, join(tree, name)]);
    }
    const found = await read(await gnuTar(dir, '--format=pax'));
    t.like(found.get('./a'), { mtimeSec: 1700000000, mtimeNsec: 123456789 });
    t.like(found.get('./b'), { mtimeSec: -2, mtimeNsec: 750000000 });
    t.like(found.get('./c'), { mtimeSec: 0, mtimeNsec: 1 });
    t.like(found.get('./d'), { mtimeSec: -3, mtimeNsec: 0 });
    // GNU's own format has whole seconds, in base-256 before 1970.
    const gnu = await read(await gnuTar(dir, '--format=gnu'));
    t.is(gnu.get('./d')?.mtimeSec, -3);
    t.is(gnu.get('./b')?.mtimeSec, -2);
  });
});

test('xattrs of GNU tar come out byte by byte, capabilities too', async (t) => {
  await inTemp(async (dir) => {
    const tree = join(dir, 'tree');
    await mkdir(tree);
    await writeFile(join(tree, 'f'), 'x');
    const value = Buffer.from([0, 1, 0x0a, 0xff, 0xfe, 0x3d, 0x80, 0]);
    try {
      const attr = ['-n', 'user.a=b%c', '-v', `0x${value.toString('hex')}`, join(tree, 'f')];
      await run('setfattr', attr);
      await run('setfattr', ['-n', 'user.empty', join(tree, 'f')]);
    } catch {
      // A filesystem without user xattrs (an old tmpfs): the next test covers the format itself.
      t.log('no user xattrs here');
      t.pass();
      return;
    }
    const privileged = process.getuid!() === 0;
    if (privileged) await run('setcap', ['cap_net_raw=ep', join(tree, 'f')]);
    const found = await read(await gnuTar(dir, '--format=pax', '--xattrs', '--xattrs-include=*'));
    const xattrs = found.get('./f')!.xattrs!;
    t.deepEqual(xattrs.get('user.a=b%c'), value);
    t.deepEqual(xattrs.get('user.empty'), Buffer.alloc(0));
    if (!privileged) return;
    // struct vfs_cap_data (linux/capability.h): revision 2 with the effective bit, bit 13 permitted.
    const capability = Buffer.from('0100000200200000000000000000000000000000', 'hex');
    t.deepEqual(xattrs.get('security.capability'), capability);
  });
});

test('pax xattr values may hold anything, and overlay notes are left out', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.uint8Array({ minLength: 0, maxLength: 300 }),
      fc.integer({ min: 1, max: 2000 }),
      async (bytes, chunk) => {
        const value = Buffer.from(bytes);
        const tar = withPax(
          [
            record('SCHILY.xattr.trusted.overlay.opaque', 'y'),
            record('SCHILY.xattr.security.capability', value),
            record('mtime', '1.5'),
            record('LIBARCHIVE.xattr.user.b%20c', value.toString('base64')),
          ],
          Buffer.concat([header({ name: 'f', size: '0', flag: '0' }), END]),
        );
        const entry = (await read(tar, chunk)).get('f')!;
        const names = [...entry.xattrs!.keys()].sort();
        return (
          names.join() === 'security.capability,user.b c' &&
          entry.xattrs!.get('security.capability')!.equals(value) &&
          entry.xattrs!.get('user.b c')!.equals(value) &&
          entry.mtimeNsec === 500_000_000
        );
      },
    ),
    { numRuns: 50 },
  );
  t.pass();
});

test('base-256 numbers: large sizes and ids, negative times', async (t) => {
  const uid = Buffer.from([0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
  const mtime = Buffer.alloc(12, 0xff);
  const size = Buffer.from([0x80, 0, 0, 0, 0, 0, 0, 0x01, 0, 0, 0, 0]);
  const tar = Buffer.concat([
    header({ name: 'a', uid, gid: '0000017\0', mtime, flag: '0' }),
    header({ name: 'b', size, flag: '0', mode: '0104755' }),
  ]);
  const reader = new TarReader(new ByteReader(Readable.from([tar])));
  t.like(await reader.next(), { uid: 0xfffffffe, gid: 15, mtimeSec: -1, size: 0 });
  t.like(await reader.next(), { size: 2 ** 32, mode: 0o4755 });
  await t.throwsAsync(reader.next(), { message: /ends in the middle of a file/ });
});

test('all 12 bits of major and 20 of minor numbers', async (t) => {
  const fields = { flag: '4', devmajor: '0007777\0', devminor: '3777777\0' };
  const found = await read(Buffer.concat([header({ name: 'd', ...fields }), END]));
  t.like(found.get('d'), { type: 'block', devmajor: 0o7777, devminor: 0o3777777 });
});

test('V7, ustar prefix, star prefix', async (t) => {
  const tar = Buffer.concat([
    header({ name: 'v7/', magic: '\0\0\0\0\0\0\0\0', flag: '\0' }),
    header({ name: 'v7/f', magic: '\0\0\0\0\0\0\0\0', flag: '\0', size: '3' }),
    padded(Buffer.from('abc')),
    header({ name: 'f', prefix: 'u/star', flag: '0' }),
    header({
      name: 'f',
      prefix: `star${'\0'.repeat(127)}00000000001 `,
      trailer: 'tar\0',
      flag: '0',
    }),
    header({ name: 'f', magic: 'ustar  \0', prefix: '12345670123 ', flag: '7' }),
    END,
  ]);
  const found = await read(tar);
  t.is(found.get('v7/')?.type, 'dir');
  t.is(found.get('v7/f')?.body.toString(), 'abc');
  t.deepEqual([...found.keys()].slice(2), ['u/star/f', 'star/f', 'f']);
});

test('a global pax header holds for what follows, a record of its own wins, an empty one takes it back', async (t) => {
  const plain = (name: string) => header({ name, flag: '0', mtime: '00000000007', uid: '0000001' });
  const tar = Buffer.concat([
    withPax([record('mtime', '5.5'), record('comment', 'x')], plain('a'), 'g'),
    withPax([record('mtime', '6.25')], plain('b')),
    plain('c'),
    withPax([record('mtime', '')], plain('d')),
    withPax([record('uid', '4000000000'), record('gid', '70000')], plain('e')),
    END,
  ]);
  const times = [...(await read(tar)).values()].map((e) => e.mtimeSec + e.mtimeNsec / 1e9);
  t.deepEqual(times, [5.5, 6.25, 5.5, 7, 5.5]);
  t.like((await read(tar)).get('e'), { uid: 4_000_000_000, gid: 70_000 });
});

test('times that a float cannot hold', async (t) => {
  const cases: [string, number, number][] = [
    ['1234567890.999999999', 1234567890, 999999999],
    ['1234567890.9999999999', 1234567890, 999999999],
    ['-0.000000001', -1, 999999999],
    ['-0.0000000001', -1, 999999999],
    ['-5', -5, 0],
    ['-5.000', -5, 0],
    ['.5', 0, 500000000],
    ['7.', 7, 0],
    ['-0', 0, 0],
  ];
  for (const [text, sec, nsec] of cases) {
    const tar = withPax([record('mtime', text)], header({ name: 'f', flag: '0' }));
    t.like((await read(tar)).get('f'), { mtimeSec: sec, mtimeNsec: nsec }, text);
  }
});

test('a size in the header of a link is not a body, GNU directories may have one', async (t) => {
  const tar = Buffer.concat([
    header({ name: 'l', flag: '1', linkname: 'x', size: '00000001000' }),
    header({ name: 's', flag: '2', linkname: 'x', size: '00000001000' }),
    header({ name: 'label', flag: 'V', size: '00000000000' }),
    header({ name: 'd', flag: 'D', size: '00000000003' }),
    padded(Buffer.from('abc')),
    header({ name: 'f', flag: '0' }),
    END,
  ]);
  const found = await read(tar);
  t.deepEqual([...found.keys()], ['l', 's', 'd', 'f']);
  t.is(found.get('d')?.type, 'dir');
});

const size = (n: number) => n.toString(8).padStart(11, '0');
const hostile: [string, Buffer, RegExp][] = [
  [
    'a wrong checksum',
    Buffer.concat([header({ name: 'f', flag: '0' }).fill('x', 0, 1), END]),
    /checksum/,
  ],
  ['text', Buffer.alloc(2048, 'no tar '), /checksum/],
  ['letters in a number', header({ name: 'f', flag: '0', size: '12x' }), /not octal/],
  [
    'a negative size',
    header({ name: 'f', flag: '0', size: Buffer.alloc(12, 0xff) }),
    /negative size/,
  ],
  [
    'a size past 53 bits',
    header({ name: 'f', size: Buffer.from('800000007fffffffffffffff', 'hex') }),
    /53 bits/,
  ],
  ['a size past 1 TiB', withPax([record('size', String(2 ** 41))], header({ name: 'f' })), /1 TiB/],
  ['an endless extended header', header({ name: 'x', flag: 'x', size: size(1 << 30) }), /8 MiB/],
  [
    'a cut extended header',
    header({ name: 'x', flag: 'x', size: size(100) }),
    /middle of an extended/,
  ],
  ['a pax length past its end', withPax([Buffer.from('99 a=b\n')], END), /wrong length/],
  ['a pax length of 0', withPax([Buffer.from('0 a=b\n')], END), /wrong length/],
  ['a pax record without =', withPax([Buffer.from('5 ab\n')], END), /no =/],
  ['a pax time of letters', withPax([record('mtime', 'now')], header({ name: 'f' })), /not a time/],
  [
    'an xattr without a name',
    withPax([record('SCHILY.xattr.', 'x')], header({ name: 'f' })),
    /xattr name/,
  ],
  [
    'an xattr of 65 KiB',
    withPax([record('SCHILY.xattr.user.a', 'x'.repeat(66000))], header({ name: 'f' })),
    /64 KiB/,
  ],
  ['an unknown type', header({ name: 'f', flag: 'Z' }), /'f' has the unknown type "Z"/],
  [
    'a lone zero block',
    Buffer.concat([Buffer.alloc(512), header({ name: 'f' })]),
    /single zero block/,
  ],
  ['half a header', header({ name: 'f', flag: '0' }).subarray(0, 200), /middle of a header/],
  [
    'half a body',
    Buffer.concat([header({ name: 'f', size: size(600) }), Buffer.alloc(512)]),
    /middle of a file/,
  ],
  [
    'an old sparse map past the end',
    header({
      name: 'f',
      flag: 'S',
      magic: 'ustar  \0',
      sparse: `${size(512)}\0${size(512)}\0`,
      real: size(600),
      size: size(512),
    }),
    /out of order or past its end/,
  ],
  [
    'an old sparse map that overlaps',
    header({
      name: 'f',
      flag: 'S',
      magic: 'ustar  \0',
      sparse: `${size(0)}\0${size(9)}\0${size(8)}\0${size(1)}\0`,
      real: size(600),
      size: size(10),
    }),
    /out of order/,
  ],
  [
    'an old sparse map without its extension',
    header({
      name: 'f',
      flag: 'S',
      magic: 'ustar  \0',
      more: '\x01',
      real: size(600),
      size: size(512),
    }),
    /middle of a sparse map/,
  ],
  [
    'a sparse map that stores less',
    withPax(
      [record('GNU.sparse.map', '0,5'), record('GNU.sparse.size', '10')],
      header({ name: 'f', size: size(4) }),
    ),
    /covers 5 bytes, and 4/,
  ],
  [
    'an odd sparse map',
    withPax(
      [record('GNU.sparse.map', '0,5,7'), record('GNU.sparse.size', '10')],
      header({ name: 'f', size: size(5) }),
    ),
    /odd number/,
  ],
  [
    'a body map with a huge count',
    Buffer.concat([
      withPax(
        [record('GNU.sparse.major', '1'), record('GNU.sparse.realsize', '10')],
        header({ name: 'f', size: size(512) }),
      ),
      padded(Buffer.from('99999999\n')),
    ]),
    /bad count/,
  ],
  [
    'a body map without end',
    Buffer.concat([
      withPax(
        [record('GNU.sparse.major', '1'), record('GNU.sparse.realsize', '10')],
        header({ name: 'f', size: size(512) }),
      ),
      padded(Buffer.from('3\n1\n')).fill('\n', 4),
    ]),
    /not a number/,
  ],
];
for (const [title, tar, message] of hostile) {
  test(`refused: ${title}`, async (t) => {
    const error = await t.throwsAsync(read(tar), { message });
    t.is((error as { kind?: string }).kind, 'corrupt');
  });
}

test('any cut of an archive is refused or gives only whole entries, and any flipped byte ends', async (t) => {
  const tar = withPax(
    [
      record('SCHILY.xattr.user.a', 'b'),
      record('GNU.sparse.map', '3,4,9,1'),
      record('GNU.sparse.size', '20'),
    ],
    Buffer.concat([
      header({ name: 'f', flag: '0', size: size(5) }),
      padded(Buffer.from('abcde')),
      await pack([{ name: 'g', body: 'g' }]),
    ]),
  );
  const whole = await read(tar);
  t.is(whole.get('f')!.body.toString('latin1'), `${'\0'.repeat(3)}abcd\0\0e${'\0'.repeat(10)}`);
  await fc.assert(
    fc.asyncProperty(fc.nat(tar.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
      const flipped = Buffer.from(tar);
      flipped[at]! ^= flip;
      for (const bytes of [tar.subarray(0, at), flipped]) {
        try {
          await read(bytes, 511);
        } catch (error) {
          if ((error as { kind?: string }).kind !== 'corrupt') throw error;
        }
      }
    }),
    { numRuns: 300 },
  );
});

test('a body that is destroyed early, or never read, does not move the next entry', async (t) => {
  const tar = await pack([
    { name: 'a', body: Buffer.alloc(500_000, 'a') },
    { name: 'b', body: Buffer.alloc(500_000, 'b') },
    { name: 'c', body: 'c' },
  ]);
  const source = Readable.from([tar.subarray(0, 100_000), tar.subarray(100_000)]);
  const reader = new TarReader(new ByteReader(source));
  await reader.next();
  const body = reader.body();
  body.once('data', () => body.destroy());
  await new Promise((resolve) => body.once('close', resolve));
  t.is((await reader.next())?.name, 'b');
  t.is((await reader.next())?.name, 'c');
  t.is((await buffer(reader.body())).toString(), 'c');
  t.is(await reader.next(), undefined);
});

test('a body that is read when its entry is over gets no bytes of the next one', async (t) => {
  const tar = await pack([
    { name: 'a', body: Buffer.alloc(3000, 'a') },
    { name: 'b', body: Buffer.alloc(3000, 'b') },
  ]);
  for (const chunk of [100, 100_000]) {
    function* chunks() {
      for (let at = 0; at < tar.length; at += chunk) yield tar.subarray(at, at + chunk);
    }
    const reader = new TarReader(new ByteReader(Readable.from(chunks())));
    await reader.next();
    const late = reader.body();
    await reader.next();
    await t.throwsAsync(buffer(late), { message: /middle of a file/ });
    t.is((await buffer(reader.body())).toString(), 'b'.repeat(3000));
  }
});

test('an archive may end without padding behind its last file', async (t) => {
  const tar = Buffer.concat([header({ name: 'f', size: size(9) }), Buffer.from('for arm64')]);
  t.is((await read(tar)).get('f')?.body.toString(), 'for arm64');
  await t.throwsAsync(read(tar.subarray(0, tar.length - 1)), { message: /middle of a file/ });
});

test('file times of a plain directory survive', async (t) => {
  await inTemp(async (dir) => {
    const tree = join(dir, 'tree');
    await mkdir(join(tree, 'd'), { recursive: true });
    await utimes(join(tree, 'd'), 1000, 2000);
    const found = await read(await gnuTar(dir, '--format=ustar'));
    t.like(found.get('./d/'), { type: 'dir', mtimeSec: 2000 });
  });
});
