// Names and labels in traces: file paths as text in JSON and back, and what is refused. Paths are
// byte strings inside (image/tree.ts); most are UTF-8, and those that are not keep their bytes
// in a key of their own.
import { FirstlightError } from '../errors/errors.ts';
import { bytesOf } from '../image/tree.ts';
import { DEFAULT_GROUP } from './tracer.ts';

/** PATH_MAX and NAME_MAX of Linux (limits.h), without the closing NUL. */
const PATH_MAX_BYTES = 4095;
const NAME_MAX_BYTES = 255;
const LABEL_MAX_CHARS = 512;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/;

const ASCII = /^[\x20-\x7e]*$/;

/** What is wrong with a path of an image, or undefined where nothing is. */
export function pathFault(path: string): string | undefined {
  if (path === '') return 'an empty path';
  if (path.length > PATH_MAX_BYTES) return 'a path longer than 4095 bytes';
  if (path.startsWith('/')) return 'an absolute path';
  if (path.includes('\0')) return 'a NUL in a path';
  for (const name of path.split('/')) {
    if (name === '' || name === '.' || name === '..') return `'${name}' as a name in a path`;
    if (name.length > NAME_MAX_BYTES) return 'a name longer than 255 bytes';
  }
  return undefined;
}

/** JSON keys of a path: `f` is text for people, `b` the bytes in base64 where they are not UTF-8. */
export function pathKeys(path: string): { f: string; b?: string } {
  // Nearly every path of an image is the same in both.
  if (ASCII.test(path)) return { f: path };
  const bytes = bytesOf(path);
  try {
    return { f: utf8.decode(bytes) };
  } catch {
    // Not UTF-8, which is legal: the text is then an approximation and the bytes go beside it.
    return { f: bytes.toString('utf8'), b: bytes.toString('base64') };
  }
}

/** The byte string of {@link pathKeys}' result, or what is wrong with it. */
export function pathOfKeys(f: unknown, b: unknown): { path: string } | { fault: string } {
  let path: string;
  if (b !== undefined) {
    if (typeof b !== 'string') return { fault: 'b is no string' };
    const bytes = Buffer.from(b, 'base64');
    if (bytes.toString('base64') !== b) return { fault: 'b is not base64' };
    path = bytes.toString('latin1');
  } else {
    if (typeof f !== 'string') return { fault: 'f is no string' };
    if (!f.isWellFormed()) return { fault: 'f holds half a surrogate pair' };
    path = Buffer.from(f, 'utf8').toString('latin1');
  }
  const fault = pathFault(path);
  return fault === undefined ? { path } : { fault };
}

/** What is wrong with a group, reference or platform as text, or undefined where nothing is. */
export function labelFault(label: string): string | undefined {
  if (label.length > LABEL_MAX_CHARS) return `is longer than ${LABEL_MAX_CHARS} characters`;
  if (!label.isWellFormed() || CONTROL.test(label)) return 'holds control characters';
  return undefined;
}

/**
 * Checks the name of a group that a user gives; an empty one is {@link DEFAULT_GROUP}.
 * @throws FirstlightError `usage`
 */
export function checkGroup(name: string): string {
  if (name === '') return DEFAULT_GROUP;
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) return name;
  throw new FirstlightError('usage', `'${name}' is not a name for a trace group`, {
    hint: 'use up to 64 letters, digits, dots, dashes and underscores, beginning with a letter or digit',
  });
}
