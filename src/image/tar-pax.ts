// Pax extended headers (POSIX.1-2001): records of `LENGTH KEY=VALUE\n` whose values are bytes, with
// the keys this project understands. Values are kept as bytes throughout: an xattr's value may hold
// anything, NUL and newline included.
import { NAME_MAX } from './limits.ts';
import { badTar } from './tar-header.ts';

/** One record; the key is a byte string. */
export interface PaxRecord {
  key: string;
  value: Buffer;
}

/** Splits an extended header into its records, in order (GNU sparse 0.0 repeats keys). */
export function parsePax(data: Buffer): PaxRecord[] {
  const records: PaxRecord[] = [];
  let at = 0;
  while (at < data.length) {
    // Some writers pad with NULs.
    if (data[at] === 0) break;
    const space = data.indexOf(0x20, at);
    const digits = space < 0 ? '' : data.toString('latin1', at, space);
    if (!/^[0-9]{1,10}$/.test(digits)) throw badTar('a pax record has no length');
    const end = at + Number(digits);
    if (end > data.length || end <= space + 1 || data[end - 1] !== 0x0a) {
      throw badTar('a pax record has a wrong length');
    }
    const equals = data.indexOf(0x3d, space);
    if (equals < 0 || equals >= end) throw badTar('a pax record has no =');
    records.push({
      key: data.toString('latin1', space + 1, equals),
      value: data.subarray(equals + 1, end - 1),
    });
    at = end;
  }
  return records;
}

/** A decimal integer, as pax writes sizes and ids. */
export function paxInteger(value: Buffer, key: string): number {
  const text = value.toString('latin1');
  if (!/^-?[0-9]{1,19}$/.test(text)) throw badTar(`pax ${key} is not a number`);
  const number = Number(text);
  if (!Number.isSafeInteger(number)) throw badTar(`pax ${key} does not fit 53 bits`);
  return number;
}

/** A pax time, exact to the nanosecond; finer digits are cut towards the past. */
export function paxTime(value: Buffer, key: string): { sec: number; nsec: number } {
  const match = /^(-?)([0-9]{0,19})(?:[.,]([0-9]*))?$/.exec(value.toString('latin1'));
  if (match === null || (match[2] === '' && (match[3] ?? '') === '')) {
    throw badTar(`pax ${key} is not a time`);
  }
  const digits = match[3] ?? '';
  let sec = Number(match[2] === '' ? '0' : match[2]);
  let nsec = Number(digits.slice(0, 9).padEnd(9, '0'));
  if (!Number.isSafeInteger(sec)) throw badTar(`pax ${key} does not fit 53 bits`);
  if (match[1] === '-') {
    // -1.25 is 0.75 s after -2: the nanoseconds of a timespec count forward.
    if (/[1-9]/.test(digits.slice(9))) nsec += 1;
    sec = nsec === 0 ? 0 - sec : -sec - 1;
    nsec = nsec === 0 ? 0 : 1e9 - nsec;
  }
  return { sec, nsec };
}

/** Longest xattr value that Linux takes (XATTR_SIZE_MAX). */
const VALUE_MAX = 65536;

/**
 * The extended attributes among the records. `SCHILY.xattr.` (star, GNU tar, Go) carries the value
 * as it is, `LIBARCHIVE.xattr.` base64 with the name URL-encoded; the first wins where both stand.
 *
 * Left out: `trusted.overlay.*` and `user.overlay.*`. They are overlayfs' own notes about a layer
 * on some other machine, and an overlay mounted over our tree would obey them.
 */
export function paxXattrs(records: Map<string, Buffer>): Map<string, Buffer> | undefined {
  let found: Map<string, Buffer> | undefined;
  const add = (name: string, value: Buffer) => {
    if (name === '' || name.length > NAME_MAX || name.includes('\0')) {
      throw badTar('an xattr name is empty, too long or has a NUL');
    }
    if (value.length > VALUE_MAX) throw badTar(`the xattr ${name} is larger than 64 KiB`);
    if (/^(trusted|user)\.overlay\./.test(name)) return;
    found ??= new Map();
    // A copy: the record is a view of a much larger chunk that would stay alive with it.
    found.set(name, Buffer.from(value));
  };
  for (const [key, value] of records) {
    if (!key.startsWith('LIBARCHIVE.xattr.')) continue;
    const name = key.slice(17).replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => {
      return String.fromCharCode(Number.parseInt(hex, 16));
    });
    add(name, Buffer.from(value.toString('latin1'), 'base64'));
  }
  for (const [key, value] of records) {
    if (!key.startsWith('SCHILY.xattr.')) continue;
    // GNU tar writes = as %3D and % as %25 in names, since a key cannot hold =.
    add(
      key.slice(13).replace(/%(3D|25)/g, (_, hex) => (hex === '25' ? '%' : '=')),
      value,
    );
  }
  return found;
}
