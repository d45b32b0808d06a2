// Content digests: parsing them, and checking a stream against one while it is read. What does not
// live here: where blobs come from.
import { createHash, type Hash } from 'node:crypto';
import { Transform, type TransformCallback } from 'node:stream';
import { FirstlightError } from '../errors/errors.ts';

/** A parsed `algorithm:hex` digest. Safe as a file name: both parts are checked. */
export interface Digest {
  algorithm: 'sha256' | 'sha512';
  hex: string;
}

const HEX_LENGTH = { sha256: 64, sha512: 128 } as const;

/**
 * Parses a digest as the OCI image specification writes it.
 * @param what  names the digest in the error
 * @throws FirstlightError `corrupt` for malformed ones, `unsupported` for other algorithms
 */
export function parseDigest(text: string, what: string): Digest {
  const match = /^([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)$/.exec(text);
  if (match === null) throw new FirstlightError('corrupt', `${what}: malformed digest '${text}'`);
  const [, algorithm, hex] = match as unknown as [string, string, string];
  if (algorithm !== 'sha256' && algorithm !== 'sha512') {
    throw new FirstlightError('unsupported', `${what}: digest algorithm '${algorithm}'`, {
      hint: 'sha256 and sha512 are supported',
    });
  }
  if (hex.length !== HEX_LENGTH[algorithm] || !/^[0-9a-f]+$/.test(hex)) {
    throw new FirstlightError('corrupt', `${what}: malformed digest '${text}'`);
  }
  return { algorithm, hex };
}

/** `sha256:...` of bytes in memory. */
export function sha256Digest(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

/** Throws FirstlightError `corrupt` unless `bytes` have this digest. */
export function checkDigest(bytes: Buffer, digest: string, what: string): void {
  const { algorithm, hex } = parseDigest(digest, what);
  const found = createHash(algorithm).update(bytes).digest('hex');
  if (found !== hex) throw mismatch(what, digest, `${algorithm}:${found}`);
}

/** The error for content that is not what its digest says. */
export function mismatch(what: string, wanted: string, found: string): FirstlightError {
  return new FirstlightError('corrupt', `${what}: the digest is ${found}, not ${wanted}`, {
    hint: 'the source is damaged or was changed; fetch or build the image again',
  });
}

/** Passes bytes through and ends in an error unless they have the given length and digest. */
export class DigestCheck extends Transform {
  readonly #what: string;
  readonly #digest: string;
  readonly #bytes: number;
  readonly #parsed: Digest;
  readonly #hash: Hash;
  #seen = 0;

  /** @param bytes  expected length, or -1 where it is not known */
  constructor(digest: string, bytes: number, what: string) {
    super();
    this.#what = what;
    this.#digest = digest;
    this.#bytes = bytes;
    this.#parsed = parseDigest(digest, what);
    this.#hash = createHash(this.#parsed.algorithm);
  }

  override _transform(chunk: Buffer, _encoding: string, done: TransformCallback): void {
    this.#seen += chunk.length;
    if (this.#bytes >= 0 && this.#seen > this.#bytes) {
      // Stop at once: what is too long could also be endless.
      done(new FirstlightError('corrupt', `${this.#what}: longer than its ${this.#bytes} bytes`));
      return;
    }
    this.#hash.update(chunk);
    done(null, chunk);
  }

  override _flush(done: TransformCallback): void {
    if (this.#bytes >= 0 && this.#seen !== this.#bytes) {
      done(
        new FirstlightError(
          'corrupt',
          `${this.#what}: ends after ${this.#seen} of ${this.#bytes} bytes`,
          { hint: 'the source is cut short; fetch or build the image again' },
        ),
      );
      return;
    }
    const hex = this.#hash.digest('hex');
    if (hex === this.#parsed.hex) done();
    else done(mismatch(this.#what, this.#digest, `${this.#parsed.algorithm}:${hex}`));
  }
}
