// The fastify instance: its limits, and every error in one form. No route stands here.
import type { Socket } from 'node:net';
import fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify';
import { FirstlightError, httpStatus } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { dropRest } from './client.ts';
import { clientError, errorBody } from './error-body.ts';

/** No upload takes longer than this. */
const REQUEST_MS = 24 * 3600 * 1000;
const HEADERS_MAX_BYTES = 16 << 10;
/** Headers of an answer that did not come to be. */
const OF_BUNDLES = [
  'content-length',
  'content-range',
  'etag',
  'accept-ranges',
  'content-location',
  'docker-content-digest',
];

/** Refusals by Node's HTTP parser, which has no request to answer yet. */
function refuse(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const status =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? '431 Request Header Fields Too Large'
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? '408 Request Timeout'
        : '400 Bad Request';
  const body = JSON.stringify(errorBody(new FirstlightError('usage', status.slice(4))));
  socket.end(
    `HTTP/1.1 ${status}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
  );
}

/** @param onError  told the kind of every error that is answered */
export function makeApp(
  log: Logger,
  limits: { headersMs: number; keepAliveMs: number; stallMs: number },
  onError: (kind: string) => void,
): FastifyInstance {
  const answer = (thrown: unknown, request: FastifyRequest, reply: FastifyReply) => {
    const status = (thrown as { statusCode?: number }).statusCode;
    // fastify's own refusals (malformed URL, unsupported method) are the client's.
    const refused = !(thrown instanceof FirstlightError) && status !== undefined && status < 500;
    const error = refused
      ? new FirstlightError('usage', (thrown as Error).message)
      : clientError(thrown);
    onError(error.kind);
    if (httpStatus(error) >= 500) {
      const { kind, message, stack } = error;
      request.log.error({ kind, error: message, stack }, 'request failed');
    }
    for (const name of OF_BUNDLES) reply.removeHeader(name);
    return reply
      .code(refused ? status : httpStatus(error))
      .header('cache-control', 'no-store')
      .type('application/json; charset=utf-8')
      .send(errorBody(error));
  };
  const app = fastify({
    loggerInstance: log as FastifyBaseLogger,
    // One line a request is written by server.ts: fastify's own would log query strings.
    logController: new LogController({ disableRequestLogging: true }),
    // A body may take long as long as it moves: standing still is what the stall bounds catch.
    requestTimeout: REQUEST_MS,
    connectionTimeout: 0,
    keepAliveTimeout: limits.keepAliveMs,
    forceCloseConnections: 'idle',
    routerOptions: { maxParamLength: 1024 },
    http: { headersTimeout: limits.headersMs, maxHeaderSize: HEADERS_MAX_BYTES, keepAlive: true },
    frameworkErrors: (error, request, reply) => {
      void answer(error, request, reply as never);
    },
    clientErrorHandler: (error, socket) => refuse(error, socket as Socket),
  });
  app.setErrorHandler(answer);
  app.setNotFoundHandler((request, reply) => {
    dropRest(request, reply, limits.stallMs);
    return answer(
      new FirstlightError('not-found', `no ${request.method} of this path here`, {
        hint: 'docs/PROTOCOL.md lists the paths',
      }),
      request,
      reply,
    );
  });
  // What asks for something has no body that anybody reads: sent without end, it would keep the connection for good, and
  // whoever has no token could keep them all.
  app.addHook('onRequest', async (request, reply) => {
    const { headers, method } = request;
    if (method !== 'GET' && method !== 'HEAD') return;
    const hasBody = 'transfer-encoding' in headers || (headers['content-length'] ?? '0') !== '0';
    if (hasBody) dropRest(request, reply, limits.stallMs);
  });
  // Bodies are streams, whatever they say they are; the one route that has one reads it itself.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', (_request, _payload, done) => done(null));
  return app as unknown as FastifyInstance;
}
