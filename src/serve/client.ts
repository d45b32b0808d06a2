// The client at the other end of a request: whether it is still there, and what it is still sending.
import type { Socket } from 'node:net';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { FirstlightError } from '../errors/errors.ts';

/** After an answer that came before the end of a body, the rest is read and dropped for this long. */
const LINGER_MS = 5_000;

/** Aborts when the client is gone before it has its answer. */
export function clientSignal(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => {
    if (!reply.raw.writableFinished) {
      gone.abort(new FirstlightError('unreachable', 'the client has gone'));
    }
  });
  return gone.signal;
}

/**
 * Reads on, for a while after an answer that came before the end of the body: a connection that is closed under a
 * client that is still sending takes the answer away with it.
 */
export function dropRest(request: FastifyRequest, reply: FastifyReply, stallMs: number): void {
  const { raw } = request;
  if (raw.complete || raw.destroyed) return;
  raw.resume();
  let timer: NodeJS.Timeout | undefined;
  // From the moment the answer is out, which on a busy machine is not yet.
  reply.raw.once('finish', () => {
    timer = setTimeout(() => raw.destroy(), Math.min(LINGER_MS, stallMs));
  });
  raw.once('close', () => clearTimeout(timer));
}

/** Per connection: aborted when it is closed. One listener, however many requests come over it. */
const CLOSED = new WeakMap<Socket, AbortController>();

/** Aborts when the connection is closed. */
export function closedSignal(socket: Socket): AbortSignal {
  let closed = CLOSED.get(socket);
  if (closed === undefined) {
    const made = new AbortController();
    closed = made;
    CLOSED.set(socket, made);
    const abort = () => made.abort(new Error('the client has gone'));
    if (socket.destroyed) abort();
    else socket.once('close', abort);
  }
  return closed.signal;
}
