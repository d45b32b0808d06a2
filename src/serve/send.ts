// Sends a bundle: conditional requests, ranges, the rate limit, and what a stalled or vanished client
// costs (nothing). What does not live here: which bundle, and the headers that say what it makes.
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { OpenBundle } from './bundle-shelf.ts';
import { closedSignal } from './client.ts';
import type { Metrics } from './metrics.ts';
import { select } from './range.ts';
import { CHUNK_BYTES, type RateLimiter } from './rate.ts';
import { MEDIA_TYPE } from './validate.ts';

/** Bytes read from the disk at a time. */
const READ_BYTES = 256 << 10;

export interface Sender {
  limiter: RateLimiter | undefined;
  metrics: Metrics;
  /** A client that takes no byte for this long is cut off. */
  stallMs: number;
}

/**
 * Resolves when the answers before this one on its connection have been written. Those that are asked for ahead
 * (HTTP pipelining) are all begun at once, and would spend the rate on what cannot be sent yet,
 * while the first answer of another connection waits.
 * @throws the signal's abort error
 */
async function turnOf(response: ServerResponse, signal: AbortSignal): Promise<void> {
  if (response.socket === null) await once(response, 'socket', { signal });
}

async function* chunks(
  bundle: OpenBundle,
  start: number,
  end: number,
  sender: Sender,
  response: ServerResponse,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  const { limiter, metrics } = sender;
  if (limiter !== undefined) await turnOf(response, signal);
  for (let at = start; at < end; ) {
    const block = await bundle.reader.read(at, Math.min(READ_BYTES, end - at));
    at += block.length;
    if (limiter === undefined) {
      metrics.sentBytes.inc(block.length);
      yield block;
      continue;
    }
    for (let from = 0; from < block.length; from += CHUNK_BYTES) {
      const chunk = block.subarray(from, from + CHUNK_BYTES);
      await limiter.take(chunk.length, signal);
      metrics.sentBytes.inc(chunk.length);
      yield chunk;
    }
  }
}

/** Answers with a bundle, or what a conditional request gets instead; takes over `bundle`. */
export async function sendBundle(
  request: FastifyRequest,
  reply: FastifyReply,
  bundle: OpenBundle,
  sender: Sender,
): Promise<FastifyReply> {
  const { id, bytes } = bundle.record;
  const etag = `"${id}"`;
  const head = request.method === 'HEAD';
  // Range has a meaning for GET alone (RFC 9110, 14.2).
  const { range: _, ...others } = request.headers;
  const selected = select(head ? others : request.headers, etag, bytes);
  reply.header('etag', etag).header('accept-ranges', 'bytes');
  if (selected.status === 304 || selected.status === 416 || head) {
    await bundle.close();
    if (selected.status === 304) return reply.code(304).send();
    if (selected.status === 416) {
      return reply.code(416).header('content-range', `bytes */${bytes}`).send();
    }
    return reply.type(MEDIA_TYPE).header('content-length', bytes).send();
  }
  const { start, end } = selected;
  reply
    .code(selected.status)
    .type(MEDIA_TYPE)
    .header('content-length', end - start);
  if (selected.status === 206) {
    reply.header('content-range', `bytes ${start}-${end - 1}/${bytes}`);
  }
  // Without a listener Node cuts the connection; the next request on it sets its own bound.
  reply.raw.setTimeout(sender.stallMs);
  const gone = closedSignal(request.raw.socket);
  const stream = Readable.from(chunks(bundle, start, end, sender, reply.raw, gone), {
    objectMode: false,
    highWaterMark: sender.limiter === undefined ? READ_BYTES : CHUNK_BYTES,
  });
  // An answer whose turn has not come hears of the end of its connection from nobody else.
  const giveUp = () => stream.destroy();
  gone.addEventListener('abort', giveUp, { once: true });
  stream.once('close', () => gone.removeEventListener('abort', giveUp));
  sender.metrics.transfers.inc();
  // Not in the generator: one whose stream dies before the first read is never entered.
  stream.once('close', () => {
    sender.metrics.transfers.dec();
    bundle.close().catch((error: unknown) => request.log.warn({ error }, 'closing a bundle'));
  });
  return reply.send(stream);
}
