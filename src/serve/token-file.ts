// The file of a server's tokens, read again when it changes: tokens come and go without a restart. What does not live
// here: its grammar (token.ts).
import { constants } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { parseTokens, type TokenList } from './token.ts';

const FILE_MAX_BYTES = 4 << 20;
/** It is looked at with the first request after so long: a token that is taken out is refused a second later. */
const LOOK_MS = 1000;

interface Version {
  dev: bigint;
  ino: bigint;
  size: bigint;
  mtimeNs: bigint;
  ctimeNs: bigint;
}

function stampOf({ dev, ino, size, mtimeNs, ctimeNs }: Version): string {
  return [dev, ino, size, mtimeNs, ctimeNs].join(' ');
}

/** Whoever can write the file can let himself in: only its owner may, and that is root or this process. */
function checkOwner(path: string, { mode, uid }: { mode: bigint; uid: bigint }): void {
  if ((mode & 0o022n) !== 0n) {
    throw new FirstlightError('permission', `${path} can be written by others than its owner`, {
      hint: `chmod go-w ${path}`,
    });
  }
  if (uid !== 0n && uid !== BigInt(process.getuid?.() ?? 0)) {
    throw new FirstlightError('permission', `${path} belongs to another user`, {
      hint: 'it must belong to root, or to the user that the server runs as',
    });
  }
}

async function load(path: string): Promise<{ list: TokenList; stamp: string }> {
  // A FIFO would have the opening wait for a writer, and every request with it.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    // Of what is open, or it could be another one by the time it is read.
    const info = await file.stat({ bigint: true });
    if (!info.isFile()) throw new FirstlightError('usage', `${path} is not a file`);
    checkOwner(path, info);
    if (info.size > BigInt(FILE_MAX_BYTES)) {
      throw new FirstlightError('usage', `${path} is too large for a file of tokens`);
    }
    return { list: parseTokens(await file.readFile('utf8'), path), stamp: stampOf(info) };
  } finally {
    await file.close();
  }
}

export class TokenFile {
  readonly #path: string;
  readonly #log: Logger;
  readonly #lookMs: number;
  #list: TokenList;
  /** Of what was read last, or could not be. */
  #stamp: string;
  /** Of the last look, where it failed. */
  #error: string | undefined;
  #lookedAt = performance.now();
  #looking: Promise<void> | undefined;

  private constructor(
    path: string,
    read: { list: TokenList; stamp: string },
    log: Logger,
    lookMs: number,
  ) {
    this.#path = path;
    this.#list = read.list;
    this.#stamp = read.stamp;
    this.#log = log;
    this.#lookMs = lookMs;
  }

  /** @throws 'usage', 'not-found', 'permission' */
  static async open(path: string, log: Logger, lookMs = LOOK_MS): Promise<TokenFile> {
    try {
      const read = await load(path);
      log.info({ path, tokens: read.list.size }, 'requests want a token');
      return new TokenFile(path, read, log, lookMs);
    } catch (error) {
      throw toFirstlightError(error);
    }
  }

  /** The tokens of now. A file that has become unreadable or wrong leaves them as they were, and the log says so. */
  async list(): Promise<TokenList> {
    if (this.#looking === undefined && performance.now() - this.#lookedAt >= this.#lookMs) {
      this.#looking = this.#look().finally(() => {
        this.#looking = undefined;
        this.#lookedAt = performance.now();
      });
    }
    await this.#looking;
    return this.#list;
  }

  async #look(): Promise<void> {
    const path = this.#path;
    let stamp: string;
    try {
      stamp = stampOf(await stat(path, { bigint: true }));
    } catch (error) {
      stamp = String((error as NodeJS.ErrnoException).code);
    }
    if (stamp === this.#stamp) return;
    this.#stamp = stamp;
    try {
      const read = await load(path);
      this.#list = read.list;
      this.#stamp = read.stamp;
      this.#error = undefined;
      this.#log.info({ path, tokens: read.list.size }, 'the tokens are read anew');
    } catch (thrown) {
      // What is wrong with the file stays so until it changes; what the system has against reading it may pass, and the
      // file may be the one that takes a token out.
      const isOfFile = thrown instanceof FirstlightError;
      if (!isOfFile) this.#stamp = '';
      // Neither does an editor's slip lock every worker out, nor does it let anybody in.
      const error = toFirstlightError(thrown).line;
      if (!isOfFile && error === this.#error) return;
      this.#error = error;
      this.#log.error({ path, error }, 'the tokens stay as they were: their file cannot be used');
    }
  }
}
