// containerd's filter language for lists of snapshots: `kind==active,labels."a/b"~=^x`. A filter is a
// list of selectors, all of which must match; of several filters one must. What does not live here:
// which snapshots there are.
//
// Selector: PATH for "is there", PATH==VALUE, PATH!=VALUE, PATH~=REGULAR-EXPRESSION. A path is names
// joined by dots; a name that holds other characters is quoted as Go quotes strings. A value may be
// quoted; the expression may stand between slashes or bars instead.
import { FirstlightError } from '../errors/errors.ts';
import { KIND_NAMES, type Snapshot } from './types.ts';

export type Match = (snapshot: Snapshot) => boolean;

/** A filter may not be longer; containerd's own are a few hundred bytes. */
const FILTER_MAX = 4096;
const NAME = /[A-Za-z_][A-Za-z0-9_]*/y;
const OPERATOR = /==|!=|~=/y;
const BARE_VALUE = /[^,\s]+/y;
const SPACE = /\s*/y;

class Reader {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  get ended(): boolean {
    return this.#at === this.#text.length;
  }

  fail(what: string): never {
    throw new FirstlightError(
      'usage',
      `filter ${JSON.stringify(this.#text)}: ${what} at character ${this.#at + 1}`,
      { hint: 'write it as kind==active or labels."name"==value' },
    );
  }

  take(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text)?.[0];
    if (found !== undefined) this.#at += found.length;
    return found;
  }

  skip(character: string): boolean {
    if (this.#text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  /** Text between two marks; a backslash takes the next character as it is, or as Go reads it. */
  quoted(marks: string): string | undefined {
    const mark = this.#text[this.#at];
    if (mark === undefined || !marks.includes(mark)) return undefined;
    let text = '';
    for (let at = this.#at + 1; at < this.#text.length; at++) {
      const character = this.#text[at]!;
      if (character === mark) {
        this.#at = at + 1;
        return text;
      }
      if (character !== '\\') {
        text += character;
        continue;
      }
      const next = this.#text[++at];
      if (next === undefined) break;
      // Between slashes or bars the backslash belongs to the expression, but for the mark itself.
      if (mark !== '"') text += next === mark ? next : `\\${next}`;
      else text += { n: '\n', t: '\t', r: '\r' }[next] ?? next;
    }
    return this.fail('a quote is not closed');
  }
}

/** The text at a path of a snapshot, undefined where there is none. */
function valueAt(snapshot: Snapshot, path: string[]): string | undefined {
  const [field, ...rest] = path;
  if (field === 'labels') return snapshot.labels[rest.join('.')];
  if (rest.length > 0) return undefined;
  switch (field) {
    case 'name':
      return snapshot.key;
    case 'parent':
      return snapshot.parent === '' ? undefined : snapshot.parent;
    case 'kind':
      return KIND_NAMES[snapshot.kind];
    default:
      return undefined;
  }
}

function readPath(reader: Reader): string[] {
  const path: string[] = [];
  do {
    const name = reader.quoted('"') ?? reader.take(NAME);
    if (name === undefined) reader.fail('a name is missing');
    path.push(name);
  } while (reader.skip('.'));
  return path;
}

function readSelector(reader: Reader): Match {
  const path = readPath(reader);
  reader.take(SPACE);
  const operator = reader.take(OPERATOR);
  if (operator === undefined) return (snapshot) => (valueAt(snapshot, path) ?? '') !== '';
  reader.take(SPACE);
  const wanted = reader.quoted(operator === '~=' ? '"/|' : '"') ?? reader.take(BARE_VALUE);
  if (wanted === undefined) reader.fail('a value is missing');
  if (operator === '==') return (snapshot) => (valueAt(snapshot, path) ?? '') === wanted;
  if (operator === '!=') return (snapshot) => (valueAt(snapshot, path) ?? '') !== wanted;
  let expression: RegExp;
  try {
    expression = new RegExp(wanted, 'u');
  } catch {
    return reader.fail(`"${wanted}" is no regular expression`);
  }
  return (snapshot) => expression.test(valueAt(snapshot, path) ?? '');
}

function parseFilter(text: string): Match {
  if (text.length > FILTER_MAX) {
    throw new FirstlightError('usage', `a filter is longer than ${FILTER_MAX} characters`);
  }
  const reader = new Reader(text);
  const selectors: Match[] = [];
  reader.take(SPACE);
  if (reader.ended) return () => true;
  do {
    reader.take(SPACE);
    selectors.push(readSelector(reader));
    reader.take(SPACE);
  } while (reader.skip(','));
  if (!reader.ended) reader.fail('a comma is missing');
  return (snapshot) => selectors.every((selector) => selector(snapshot));
}

/**
 * What a list of filters asks for: a snapshot that one of them matches; every snapshot where there are none.
 * @throws FirstlightError `usage` naming the filter and the place in it
 */
export function parseFilters(filters: readonly string[]): Match {
  if (filters.length === 0) return () => true;
  const matches = filters.map(parseFilter);
  return (snapshot) => matches.some((match) => match(snapshot));
}
