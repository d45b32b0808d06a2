// Guarded reading of JSON from outside. JSON.parse itself does not overflow the stack, but it turns
// a few megabytes of brackets into gigabytes of arrays: nesting and containers are counted first.
import { FirstlightError } from '../errors/errors.ts';

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Bounds for {@link parseJson}. */
export interface JsonLimits {
  bytes: number;
  /** Nesting of arrays and objects. */
  depth: number;
  /** Arrays and objects in all. */
  containers: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

function shapeFault(bytes: Uint8Array, limits: JsonLimits): string | undefined {
  let depth = 0;
  let containers = 0;
  for (let at = 0; at < bytes.length; at++) {
    switch (bytes[at]) {
      case QUOTE:
        for (at++; at < bytes.length && bytes[at] !== QUOTE; at++) {
          if (bytes[at] === BACKSLASH) at++;
        }
        break;
      case OPEN_ARRAY:
      case OPEN_OBJECT:
        if (++depth > limits.depth) return `nests deeper than ${limits.depth}`;
        if (++containers > limits.containers) return `has over ${limits.containers} lists`;
        break;
      case CLOSE_ARRAY:
      case CLOSE_OBJECT:
        depth--;
        break;
    }
  }
  return undefined;
}

/**
 * JSON.parse within bounds.
 * @param what  what the bytes are, for the message
 * @throws FirstlightError `corrupt`
 */
export function parseJson(bytes: Uint8Array, limits: JsonLimits, what: string): unknown {
  const bad = (why: string, cause?: unknown) =>
    new FirstlightError('corrupt', `${what} ${why}`, { cause });
  if (bytes.length > limits.bytes) {
    throw bad(`has ${bytes.length} bytes, more than the ${limits.bytes} allowed`);
  }
  const fault = shapeFault(bytes, limits);
  if (fault !== undefined) throw bad(fault);
  let text: string;
  try {
    text = utf8.decode(bytes);
  } catch (error) {
    throw bad('is not UTF-8', error);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    // The engine's message quotes the text, which may be hostile: only its place is of use.
    const place = /position \d+/.exec((error as Error).message)?.[0];
    throw bad(`is not JSON${place === undefined ? '' : ` (${place})`}`);
  }
}

/** An object from outside; own keys only, so `__proto__` and its kind are plain data. */
export class Fields {
  readonly value: object;
  /** Where it stands, for messages. */
  readonly where: string;

  constructor(value: unknown, where: string) {
    this.where = where;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new FirstlightError('corrupt', `${where} is no JSON object`);
    }
    this.value = value;
  }

  get(key: string): unknown {
    if (!Object.hasOwn(this.value, key)) return undefined;
    return (this.value as Record<string, unknown>)[key] ?? undefined;
  }

  bad(key: string, why: string): FirstlightError {
    return new FirstlightError('corrupt', `${this.where}: ${key} ${why}`);
  }

  /** A whole number from 0 to `max`, or undefined where the key is absent or null. */
  count(key: string, max: number): number | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (!isCount(value, max)) throw this.bad(key, `is no whole number from 0 to ${max}`);
    // Minus zero is a whole number too.
    return value + 0;
  }

  text(key: string): string | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === 'string') return value;
    throw this.bad(key, 'is no string');
  }

  list(key: string, max: number): unknown[] | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) throw this.bad(key, 'is no list');
    if (value.length > max) throw this.bad(key, `has ${value.length} entries, more than ${max}`);
    return value;
  }
}

/** True for a whole number from 0 to `max`. */
export function isCount(value: unknown, max: number): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= max;
}
