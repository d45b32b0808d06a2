// Bearer tokens (RFC 6750) as a server knows them: a token is 256 random bits, and what the server keeps is its
// sha256, a name, and what it is for. Here are the list, its file's grammar and how one is made. What does not live
// here: reading the file (token-file.ts), and which request wants what (guard.ts).
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { FirstlightError } from '../errors/errors.ts';

/** What a token can be for. */
export const SCOPES = ['fetch', 'report', 'change', 'metrics'] as const;
export type Scope = (typeof SCOPES)[number];

/** What a worker needs, and what a token is for where its line does not say. */
const WORKER: readonly Scope[] = ['fetch', 'report'];

/** One token of the list. */
export interface TokenEntry {
  /** Of whoever has it, for logs. Two tokens may share one, while the old one is being replaced. */
  name: string;
  /** sha256 of the token. */
  digest: Buffer;
  scopes: ReadonlySet<Scope>;
}

const LEAST_CHARS = 8;
const RANDOM_BYTES = 32;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$/;
const DIGEST = /^sha256:([0-9a-f]{64})$/;

/** @throws 'usage' where it can be no token: the grammar of RFC 6750, and not too short to be guessed */
export function checkToken(token: string): void {
  if (/^[A-Za-z0-9\-._~+/]+=*$/.test(token) && token.length >= LEAST_CHARS) return;
  throw new FirstlightError('usage', "the server's token is no bearer token", {
    hint: `use at least ${LEAST_CHARS} letters, digits or -._~+/ on one line, such as "firstlight token NAME" prints`,
  });
}

function digestOf(token: string): Buffer {
  return createHash('sha256').update(token).digest();
}

/** A token that may do everything, under a name for logs. @throws 'usage' */
export function entryOf(name: string, token: string): TokenEntry {
  checkToken(token);
  return { name, digest: digestOf(token), scopes: new Set(SCOPES) };
}

/** The tokens that a server takes. */
export class TokenList {
  readonly #entries: readonly TokenEntry[];

  constructor(entries: readonly TokenEntry[]) {
    this.#entries = entries;
  }

  get size(): number {
    return this.#entries.length;
  }

  /** The entry of a token. How long that takes tells nothing of the tokens in the list, and not which one it was. */
  find(token: string): TokenEntry | undefined {
    // Of equal length whatever comes; and all are compared, whichever fits.
    const given = digestOf(token);
    let found: TokenEntry | undefined;
    for (const entry of this.#entries) {
      if (timingSafeEqual(given, entry.digest)) found = entry;
    }
    return found;
  }
}

/** Scopes in text, such as `fetch,report`; undefined where one is none. */
export function parseScopes(text: string): Set<Scope> | undefined {
  const words = text.split(',');
  return words.every((word): word is Scope => (SCOPES as readonly string[]).includes(word))
    ? new Set(words)
    : undefined;
}

/** One line without its comment; a text says what is wrong with it, and none of what stands there. */
function parseLine([name = '', digest = '', ...options]: string[]): TokenEntry | string {
  if (!NAME.test(name)) return 'the first word must be a name';
  const hex = DIGEST.exec(digest)?.[1];
  if (hex === undefined) return 'the second word must be "sha256:" and 64 hex digits';
  let scopes: Set<Scope> | undefined = new Set(WORKER);
  const seen = new Set<string>();
  for (const option of options) {
    const [, key = '', value = ''] = /^([a-z]+)=(.+)$/.exec(option) ?? [];
    if (key !== 'may') return 'what follows the digest must be may=...';
    if (seen.has(key)) return `${key}= stands there twice`;
    seen.add(key);
    scopes = parseScopes(value);
    if (scopes === undefined) return `may= must be some of ${SCOPES.join(',')}`;
  }
  return { name, digest: Buffer.from(hex, 'hex'), scopes };
}

/**
 * Reads the text of a file of tokens: `NAME sha256:HEX [may=SCOPE,...]` a line, comments behind `#`.
 * @param path  for messages, which never tell what stands in the file: it might be a token
 * @throws 'usage' with the number of the line; where there is no token at all
 */
export function parseTokens(text: string, path: string): TokenList {
  const hint = 'write what "firstlight token NAME" prints';
  const entries: TokenEntry[] = [];
  const digests = new Set<string>();
  for (const [index, line] of text.split('\n').entries()) {
    const words = line
      .replace(/(^|\s)#.*$/s, '')
      .split(/\s+/)
      .filter((word) => word !== '');
    if (words.length === 0) continue;
    let entry = parseLine(words);
    if (typeof entry !== 'string') {
      const hex = entry.digest.toString('hex');
      if (digests.has(hex)) entry = 'the token stands there already';
      digests.add(hex);
    }
    if (typeof entry === 'string') {
      throw new FirstlightError('usage', `${path}, line ${index + 1}: ${entry}`, { hint });
    }
    entries.push(entry);
  }
  if (entries.length === 0) throw new FirstlightError('usage', `${path} names no token`, { hint });
  return new TokenList(entries);
}

/** A new token, and the line for a server's file. @throws 'usage' for a name that no line can have */
export function makeToken(
  name: string,
  scopes?: ReadonlySet<Scope>,
): { token: string; line: string } {
  if (!NAME.test(name)) {
    throw new FirstlightError('usage', `"${name}" cannot be the name of a token`, {
      hint: 'use letters, digits and "._@-"',
    });
  }
  const token = randomBytes(RANDOM_BYTES).toString('base64url');
  const may = scopes === undefined ? '' : ` may=${[...scopes].join(',')}`;
  return { token, line: `${name} sha256:${digestOf(token).toString('hex')}${may}` };
}
