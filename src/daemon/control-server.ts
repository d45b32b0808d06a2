// The daemon's end of the control socket: connections, lines, JSON. What the requests mean is not
// known here: see requests.ts for their shape and daemon.ts for their effect.
import { chmod, mkdir, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname } from 'node:path';
import { toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { ControlEvent, ControlLine } from './control.ts';

/** A request line may not be longer. */
const REQUEST_MAX_BYTES = 1 << 20;
/** A client that has connected and says nothing is let go after this time. */
const SILENCE_MS = 30_000;
/** Beyond this much unread output a client is taken for stuck, and events are left out. */
const BACKLOG_MAX_BYTES = 1 << 20;

/** One request under way, as its handler sees it. */
export interface Exchange {
  /** Sends an event before the answer; left out where the client does not read. */
  send(event: ControlEvent): void;
  /** Aborted when the client has gone before it got its answer. */
  gone: AbortSignal;
}

/** Answers one request (parsed JSON of unknown shape); what it throws is sent as the error. */
export type Handler = (request: unknown, exchange: Exchange) => Promise<unknown>;

/** Listens on a Unix socket that only its owner may use. */
export class ControlServer {
  readonly #server: Server;
  readonly #path: string;
  readonly #sockets = new Set<Socket>();
  /** Those that have not asked for anything yet. */
  readonly #silent = new Set<Socket>();
  readonly #log: Logger;
  readonly #handler: Handler;

  private constructor(path: string, handler: Handler, log: Logger) {
    this.#path = path;
    this.#handler = handler;
    this.#log = log;
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
  }

  /**
   * Starts to listen. The caller holds the root's lock, so a socket file that stands there belongs
   * to a process that is gone, and is replaced.
   */
  static async listen(path: string, handler: Handler, log: Logger): Promise<ControlServer> {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    await rm(path, { force: true });
    const control = new ControlServer(path, handler, log);
    // The mask, not a later chmod: at no moment may another user connect.
    const mask = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        control.#server.once('error', reject);
        control.#server.listen(path, () => {
          control.#server.off('error', reject);
          resolve();
        });
      });
    } finally {
      process.umask(mask);
    }
    await chmod(path, 0o600);
    control.#server.on('error', (error) => log.error({ err: error }, 'control socket failed'));
    return control;
  }

  /** Number of open connections. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** No new connections; requests under way have a second more for their answers. */
  async close(): Promise<void> {
    // First the name: a client that comes now starts a new daemon instead of waiting for this one.
    await rm(this.#path, { force: true });
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#silent) socket.destroy();
    const timer = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy();
    }, 1000);
    await closed;
    clearTimeout(timer);
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    this.#silent.add(socket);
    const gone = new AbortController();
    let text = '';
    let answered = false;
    socket.setEncoding('utf8');
    socket.setTimeout(SILENCE_MS, () => socket.destroy());
    // A broken connection is a client that has gone; `close` follows and says so to the handler.
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#sockets.delete(socket);
      this.#silent.delete(socket);
      if (!answered) gone.abort();
    });
    // The client's half is closed: it gives a lease back, or has been killed. The answer still goes
    // out where it reads on, and says that the work is over.
    socket.on('end', () => {
      if (!answered) gone.abort();
      if (this.#silent.has(socket)) socket.end();
    });
    const onData = (chunk: string) => {
      text += chunk;
      const end = text.indexOf('\n');
      if (end < 0 && text.length > REQUEST_MAX_BYTES) socket.destroy();
      if (end < 0) return;
      socket.off('data', onData);
      this.#silent.delete(socket);
      socket.resume();
      socket.setTimeout(0);
      const send = (line: ControlLine) => {
        if (socket.writable && socket.writableLength < BACKLOG_MAX_BYTES) {
          socket.write(`${JSON.stringify(line)}\n`);
        }
      };
      void this.#answer(text.slice(0, end), send, gone.signal).then((line) => {
        answered = true;
        if (socket.writable) socket.end(`${JSON.stringify(line)}\n`);
      });
    };
    socket.on('data', onData);
  }

  async #answer(
    text: string,
    send: (line: ControlLine) => void,
    gone: AbortSignal,
  ): Promise<ControlLine> {
    try {
      const request: unknown = JSON.parse(text);
      return { result: (await this.#handler(request, { send, gone })) ?? null };
    } catch (cause) {
      const error = toFirstlightError(cause);
      if (error.kind === 'internal') this.#log.error({ err: cause }, 'request failed');
      const { kind, message, hint } = error;
      return { error: { kind, message, ...(hint === undefined ? {} : { hint }) } };
    }
  }
}
