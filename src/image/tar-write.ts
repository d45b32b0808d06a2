// Writes the headers of a layer's tar: ustar blocks with pax records (POSIX.1-2001) where something
// does not fit, which umoci, containerd, docker and GNU tar all read. Byte for byte the same for the
// same entries: no clock, no names of users. What does not live here: reading (tar.ts), and the order
// and meaning of entries (tree/diff-layer.ts).
//
// Names are byte strings and are written as such, as GNU tar does; what is no UTF-8 stays what it is.
import { BLOCK } from './tar-header.ts';
import type { InodeType } from './tree.ts';

/** One entry, without its content. */
export interface TarItem {
  /** Byte string without a slash in front; a directory's ends in one. */
  name: string;
  type: InodeType | 'link';
  /** Permission bits: 0 to 0o7777. */
  mode: number;
  uid: number;
  gid: number;
  mtimeSec: number;
  mtimeNsec: number;
  /** Bytes that follow; 0 but for `file`. */
  size: number;
  /** Target of a symlink or of a hard link, byte string. */
  linkname?: string;
  major?: number;
  minor?: number;
  /** Full names (byte strings) and values. */
  xattrs?: Map<string, Buffer>;
}

const FLAGS: Record<Exclude<TarItem['type'], 'socket'>, string> = {
  file: '0',
  link: '1',
  symlink: '2',
  char: '3',
  block: '4',
  dir: '5',
  fifo: '6',
};

const NAME_BYTES = 100;
/** Largest numbers of 7 and 11 octal digits. */
const ID_MAX = 0o7777777;
const SIZE_MAX = 0o77777777777;

/** A pax record: its length counts itself. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = key.length + value.length + 3;
  let length = rest + String(rest).length;
  if (String(length).length > String(rest).length) length = rest + String(length).length;
  const record = [Buffer.from(`${length} ${key}=`, 'latin1'), value, Buffer.from('\n')];
  return Buffer.concat(record);
}

/** Seconds with a fraction, exact. */
function paxTime(sec: number, nsec: number): string {
  if (nsec === 0) return String(sec);
  // Before 1970 seconds are rounded down, and the text counts the other way.
  const [whole, fraction] = sec < 0 ? [sec + 1, 1_000_000_000 - nsec] : [sec, nsec];
  const sign = sec < 0 && whole === 0 ? '-' : '';
  return `${sign}${whole}.${String(fraction).padStart(9, '0').replace(/0+$/, '')}`;
}

function paxRecords(item: TarItem): Buffer[] {
  const found: [string, Buffer][] = [];
  const add = (key: string, text: string) => found.push([key, Buffer.from(text, 'latin1')]);
  if (item.name.length > NAME_BYTES) add('path', item.name);
  if ((item.linkname ?? '').length > NAME_BYTES) add('linkpath', item.linkname!);
  if (item.size > SIZE_MAX) add('size', String(item.size));
  if (item.uid > ID_MAX) add('uid', String(item.uid));
  if (item.gid > ID_MAX) add('gid', String(item.gid));
  if (item.mtimeNsec !== 0 || item.mtimeSec < 0 || item.mtimeSec > SIZE_MAX) {
    add('mtime', paxTime(item.mtimeSec, item.mtimeNsec));
  }
  const xattrs = [...(item.xattrs ?? [])].sort(([a], [b]) => (a < b ? -1 : 1));
  for (const [name, value] of xattrs) found.push([`SCHILY.xattr.${name}`, value]);
  return found.map(([key, value]) => paxRecord(key, value));
}

function octal(block: Buffer, offset: number, length: number, value: number): void {
  block.write(value.toString(8).padStart(length - 1, '0'), offset, 'latin1');
}

interface Fields {
  name: string;
  flag: string;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  mtime: number;
  linkname: string;
  major: number;
  minor: number;
}

function headerBlock(f: Fields): Buffer {
  const block = Buffer.alloc(BLOCK);
  block.write(f.name.slice(0, NAME_BYTES), 0, 'latin1');
  octal(block, 100, 8, f.mode);
  octal(block, 108, 8, f.uid > ID_MAX ? 0 : f.uid);
  octal(block, 116, 8, f.gid > ID_MAX ? 0 : f.gid);
  octal(block, 124, 12, f.size > SIZE_MAX ? 0 : f.size);
  octal(block, 136, 12, f.mtime < 0 || f.mtime > SIZE_MAX ? 0 : f.mtime);
  block.fill(' ', 148, 156);
  block.write(f.flag, 156, 'latin1');
  block.write(f.linkname.slice(0, NAME_BYTES), 157, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  octal(block, 329, 8, f.major);
  octal(block, 337, 8, f.minor);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** Zeros that fill `bytes` up to a whole block. */
export function tarPadding(bytes: number): Buffer {
  return Buffer.alloc((BLOCK - (bytes % BLOCK)) % BLOCK);
}

/** What stands before an entry's content. @throws Error for a socket, which a tar cannot hold */
export function tarHeaders(item: TarItem): Buffer {
  if (item.type === 'socket') throw new Error('a tar cannot hold a socket');
  const { mode, uid, gid, size, linkname = '', major = 0, minor = 0 } = item;
  const main = { name: item.name, flag: FLAGS[item.type], mode, uid, gid, size, linkname };
  const header = headerBlock({ ...main, mtime: item.mtimeSec, major, minor });
  const records = paxRecords(item);
  if (records.length === 0) return header;
  const body = Buffer.concat(records);
  const pax = headerBlock({
    ...{ name: 'PaxHeaders/entry', flag: 'x', mode: 0o644, uid: 0, gid: 0, size: body.length },
    ...{ mtime: 0, linkname: '', major: 0, minor: 0 },
  });
  return Buffer.concat([pax, body, tarPadding(body.length), header]);
}

/** The end of an archive. */
export function tarEnd(): Buffer {
  return Buffer.alloc(2 * BLOCK);
}
