// What is written is read back the same by our reader; GNU tar, umoci and containerd have their say
// in test/long/diff-commit.test.ts.
import { Readable } from 'node:stream';
import test from 'ava';
import { ByteReader } from './byte-reader.ts';
import { TarReader } from './tar.ts';
import { type TarItem, tarEnd, tarHeaders, tarPadding } from './tar-write.ts';

const PLAIN: TarItem = {
  ...{ name: 'a', type: 'file', mode: 0o4755, uid: 0, gid: 0 },
  ...{ mtimeSec: 1_700_000_000, mtimeNsec: 0, size: 0 },
};

async function back(item: TarItem) {
  const tar = Buffer.concat([
    tarHeaders(item),
    Buffer.alloc(item.size < 1 << 20 ? item.size : 0),
    tarPadding(item.size),
    tarEnd(),
  ]);
  const entry = await new TarReader(new ByteReader(Readable.from([tar]))).next();
  return { ...entry!, blocks: tar.length / 512 };
}

const ITEMS: [what: string, item: TarItem][] = [
  ['a plain file', PLAIN],
  ['a name of 100 bytes', { ...PLAIN, name: 'n'.repeat(100) }],
  ['a name of 255 bytes', { ...PLAIN, name: `d/${'n'.repeat(255)}` }],
  ['a name that is no text', { ...PLAIN, name: '\xff\xfe' }],
  ['a long name that is no text', { ...PLAIN, name: '\xff'.repeat(200) }],
  ['a time before 1970', { ...PLAIN, mtimeSec: -6, mtimeNsec: 500_000_000 }],
  ['a time just before 1970', { ...PLAIN, mtimeSec: -1, mtimeNsec: 1 }],
  ['a time with all nine digits', { ...PLAIN, mtimeNsec: 123_456_789 }],
  ['large owners', { ...PLAIN, uid: 3_000_000, gid: 2 ** 32 - 2 }],
  ['a symlink', { ...PLAIN, type: 'symlink', mode: 0o777, linkname: '../x' }],
  ['a long target', { ...PLAIN, type: 'symlink', mode: 0o777, linkname: 't'.repeat(4000) }],
  ['a device', { ...PLAIN, type: 'block', major: 259, minor: 70_000 }],
  ['a directory', { ...PLAIN, type: 'dir', name: 'd/' }],
  ['a fifo', { ...PLAIN, type: 'fifo' }],
  [
    'attributes of bytes',
    {
      ...PLAIN,
      xattrs: new Map([
        ['user.z', Buffer.from('a=b\n\0')],
        ['security.capability', Buffer.alloc(20, 1)],
      ]),
    },
  ],
];

for (const [what, item] of ITEMS) {
  test(`${what} is read back as it was written`, async (t) => {
    const entry = await back(item);
    t.is(entry.name.replace(/\/$/, ''), item.name.replace(/\/$/, ''));
    const { mode, uid, gid, mtimeSec, mtimeNsec, size } = item;
    t.like(entry, { type: item.type, mode, uid, gid, mtimeSec, mtimeNsec, size });
    if (item.linkname !== undefined) t.is(entry.linkname, item.linkname);
    if (item.major !== undefined) t.like(entry, { devmajor: item.major, devminor: item.minor! });
    t.deepEqual([...(entry.xattrs ?? [])].sort(), [...(item.xattrs ?? [])].sort());
  });
}

test('a file beyond 8 GiB has its size in a record', async (t) => {
  t.is((await back({ ...PLAIN, size: 9 * 2 ** 30 })).size, 9 * 2 ** 30);
});

test('the same entry gives the same bytes, and a socket none', (t) => {
  const item = ITEMS.at(-1)![1];
  const reversed = { ...item, xattrs: new Map([...item.xattrs!].reverse()) };
  t.deepEqual(tarHeaders(item), tarHeaders(reversed));
  t.throws(() => tarHeaders({ ...PLAIN, type: 'socket' }));
});
