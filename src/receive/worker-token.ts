// The bearer token that a worker shows to its delta server: read from its file, and again when the server does not take
// it any more, since tokens are replaced while daemons run. What does not live here: the requests (connections.ts).
import { constants } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';

const TOKEN_MAX_CHARS = 4096;
/** With the spaces and empty lines about it. */
const FILE_MAX_BYTES = 64 << 10;

/** The text of a plain file. */
async function readPlain(path: string): Promise<string> {
  // A FIFO would hold up whoever waits for the answer, and what has no end the whole daemon.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    const info = await file.stat();
    if (!info.isFile() || info.size > FILE_MAX_BYTES) {
      throw new FirstlightError('usage', `${path} holds no token: it is no small file`);
    }
    return await file.readFile('utf8');
  } finally {
    await file.close();
  }
}

/**
 * The token in a file, which may be a pipe for a command that reads it once.
 * @throws 'usage', 'not-found', 'permission'
 */
export async function readTokenFile(
  path: string,
  read = (name: string) => readFile(name, 'utf8'),
): Promise<string> {
  let text: string;
  try {
    text = (await read(path)).trim();
  } catch (error) {
    throw toFirstlightError(error);
  }
  // What stands in the file is told to nobody, not even in an error.
  if (/^[\x21-\x7e]+$/.test(text) && text.length <= TOKEN_MAX_CHARS) return text;
  throw new FirstlightError('usage', `${path} holds no token`, {
    hint: 'put the token on one line of it and nothing else',
  });
}

/** The value of an Authorization header (RFC 6750). */
export function bearer(token: string): string {
  return `Bearer ${token}`;
}

/** The token of one file, as it was read last. */
export class WorkerToken {
  readonly path: string;
  #header: string | undefined;
  #reading: Promise<string> | undefined;

  constructor(path: string) {
    this.path = path;
  }

  /** Value of the Authorization header, where the file has been read. */
  get header(): string | undefined {
    return this.#header;
  }

  /** Reads the file, once for all who ask meanwhile. @throws 'unauthorized' where it gives no token */
  read(): Promise<string> {
    this.#reading ??= this.#read().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }

  async #read(): Promise<string> {
    try {
      this.#header = bearer(await readTokenFile(this.path, readPlain));
      return this.#header;
    } catch (cause) {
      const { message } = toFirstlightError(cause);
      throw new FirstlightError('unauthorized', `there is no token to show: ${message}`, {
        hint: `put it into ${this.path}`,
        cause,
      });
    }
  }

  /** The server has refused `header`: the one that stands in the file by now, undefined where it is the same. */
  async renewed(header: string): Promise<string | undefined> {
    if (this.#header !== undefined && this.#header !== header) return this.#header;
    const now = await this.read();
    return now === header ? undefined : now;
  }
}

/** A server's refusal of the token in a file, with what to do about it; other errors as they are. */
export function refusedToken(
  error: FirstlightError,
  server: string,
  path: string,
): FirstlightError {
  if (error.kind !== 'unauthorized') return error;
  return new FirstlightError('unauthorized', `${server} does not take the token in ${path}`, {
    hint: 'put one into it that the server has: it is read again',
  });
}

/** True where the server has answered and will not give it: to ask again changes nothing until somebody sees to it. */
export function isRefusal({ kind, cause }: FirstlightError): boolean {
  // One of this kind with a cause comes from a file of this machine.
  return kind === 'unauthorized' || (kind === 'permission' && cause === undefined);
}
