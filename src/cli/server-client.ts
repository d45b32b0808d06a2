// The delta server as `image` commands and `doctor` see it: JSON over HTTP (delta/protocol.ts).
import type { Readable } from 'node:stream';
import { type Dispatcher, errors, request } from 'undici';
import type { ErrorBody } from '../delta/protocol.ts';
import { FirstlightError, isErrorKind, toFirstlightError } from '../errors/errors.ts';
import { certificateHint, connectTo, isOfTls } from '../receive/secure-connect.ts';

/** A server that has not begun to answer after this time is taken for dead; intakes answer at once. */
const HEADERS_TIMEOUT_MS = 30_000;
const CONNECT_TIMEOUT_MS = 10_000;

/** The error of an answer that is not a success. */
function errorOfAnswer(status: number, text: string, url: string): FirstlightError {
  try {
    const { error } = JSON.parse(text) as ErrorBody;
    return new FirstlightError(
      isErrorKind(error.kind) ? error.kind : 'internal',
      error.message,
      error.hint === undefined ? {} : { hint: error.hint },
    );
  } catch (cause) {
    return new FirstlightError(
      'unreachable',
      `${url} answered ${status}, and not as a delta server does`,
      {
        hint: 'check --server',
        cause,
      },
    );
  }
}

/** An error of the connection in words. */
export function connectionError(cause: unknown, server: string): FirstlightError {
  const inner = cause instanceof AggregateError ? (cause.errors[0] as unknown) : cause;
  if (
    inner instanceof errors.ConnectTimeoutError ||
    inner instanceof errors.HeadersTimeoutError ||
    inner instanceof errors.BodyTimeoutError ||
    inner instanceof errors.SocketError
  ) {
    return new FirstlightError(
      'unreachable',
      `the server ${server} does not answer: ${inner.message}`,
      {
        hint: 'check --server, and that "firstlight serve" runs there',
        cause,
      },
    );
  }
  const e = toFirstlightError(inner);
  const { code } = inner as NodeJS.ErrnoException;
  if (e.kind !== 'unreachable' && !isOfTls(code)) return e;
  return new FirstlightError(
    'unreachable',
    `the server ${server} cannot be reached: ${e.message}`,
    {
      hint: certificateHint(code) ?? 'check --server, and that "firstlight serve" runs there',
      cause,
    },
  );
}

/** What is sent. */
export interface ServerRequest {
  method?: 'GET' | 'POST' | 'DELETE';
  query?: Record<string, string>;
  headers?: Record<string, string>;
  body?: Readable;
  signal: AbortSignal;
}

/**
 * Sends one request and gives the body of a successful answer, as a stream.
 * @throws FirstlightError what the server answered, or `unreachable`
 */
export async function askServer(
  server: string,
  path: string,
  options: ServerRequest,
): Promise<Dispatcher.ResponseData['body']> {
  const url = new URL(server);
  // Below the path that the server has: beside it may be somebody else's, who is shown no token.
  url.pathname = url.pathname.replace(/\/+$/, '') + path;
  url.search = '';
  for (const [name, value] of Object.entries(options.query ?? {}))
    url.searchParams.set(name, value);
  const { Agent } = await import('undici');
  const agent = new Agent({ connect: connectTo(url, CONNECT_TIMEOUT_MS) });
  try {
    const answer = await request(url, {
      method: options.method ?? 'GET',
      ...(options.headers === undefined ? {} : { headers: options.headers }),
      ...(options.body === undefined ? {} : { body: options.body }),
      signal: options.signal,
      dispatcher: agent,
      // An upload is answered while it is still under way, or after it: as long as that takes.
      headersTimeout: options.method === 'POST' ? 0 : HEADERS_TIMEOUT_MS,
      bodyTimeout: 0,
    });
    if (answer.statusCode < 300) return answer.body;
    throw errorOfAnswer(answer.statusCode, await answer.body.text(), url.origin);
  } catch (error) {
    options.signal.throwIfAborted();
    if (error instanceof FirstlightError) throw error;
    throw connectionError(error, server);
  }
}

/** The path of one image below `/v1/images`; slashes of its name stay. */
export function imagePath(base: string, name: string): string {
  return `${base}/${name.split('/').map(encodeURIComponent).join('/')}`.replaceAll('%3A', ':');
}
