// `firstlight serve`: the HTTP server. What the routes do stands in routes-*.ts, the store behind
// them in image-store.ts; here are the listener, its limits, health, metrics, errors and the end.
import type { FastifyInstance } from 'fastify';
import { API } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import { type Logger, makeLogger } from '../log/log.ts';
import { TRACE_MAX_BYTES } from '../trace/tracer.ts';
import { makeApp } from './app.ts';
import { clientError, errorBody } from './error-body.ts';
import { guard } from './guard.ts';
import { ImageStore, type ImageStoreLimits } from './image-store.ts';
import { formatUrl, isLocal, parseListen } from './listen.ts';
import { Metrics } from './metrics.ts';
import { RateLimiter } from './rate.ts';
import { deltaRoutes } from './routes-delta.ts';
import { imageRoutes } from './routes-images.ts';
import { TRACE_HINTS, traceRoutes } from './routes-traces.ts';
import { entryOf, TokenList } from './token.ts';
import { TokenFile } from './token-file.ts';
import { IMAGE_HINTS } from './upload.ts';

/** Bounds of the HTTP side; every one has a default. */
export interface ServerLimits {
  /** Bytes of an uploaded image: 64 GiB. */
  uploadMaxBytes: number;
  /** Bytes of a reported trace: 32 MiB, which is also the most that a trace can have. */
  traceMaxBytes: number;
  /** A client that sends or takes no byte for this long is cut off: 60 s. */
  stallMs: number;
  /** A request's headers must be there after this: 20 s. */
  headersMs: number;
  /** An idle connection is kept this long: 10 minutes, so that workers keep theirs warm. */
  keepAliveMs: number;
  connectionsMax: number;
  /** Transfers may go on for this long after `close`: 10 s. */
  shutdownMs: number;
  /** Time between two clean-ups of unused bundles: 10 minutes. */
  cleanMs: number;
}

const DEFAULT_LIMITS: ServerLimits = {
  uploadMaxBytes: 64 * 2 ** 30,
  traceMaxBytes: TRACE_MAX_BYTES,
  stallMs: 60_000,
  headersMs: 20_000,
  keepAliveMs: 600_000,
  connectionsMax: 4096,
  shutdownMs: 10_000,
  cleanMs: 600_000,
};

export interface ServerOptions {
  /** Directory of catalog and blobs; made where there is none. */
  dataDir: string;
  /** `HOST:PORT`; port 0 takes a free one. */
  listen: string;
  /** Send rate of all bundle transfers together; no limit where absent. */
  rateBitsPerSecond?: number | undefined;
  /**
   * Whether pulls for clients that send no login may use the one in this process's docker configuration: every client
   * can then take in, and read, whatever that login can. Not where absent.
   */
  registryLogin?: boolean | undefined;
  /** Where mirrors and certificates of registries are looked for (hosts.toml); nowhere where absent. */
  hostsDirs?: readonly string[] | undefined;
  /** Whatever changes something wants this bearer token; where absent, whoever reaches the server may. */
  token?: string | undefined;
  /**
   * File of tokens (token.ts): every request wants one of them then, but for health, and `token` counts no more. Where
   * absent, whoever reaches the server may read all it has.
   */
  tokensFile?: string | undefined;
  log?: Logger;
  limits?: Partial<ServerLimits & ImageStoreLimits>;
}

/** A running server. */
export interface RunningServer {
  /** Such as `http://127.0.0.1:7070`. */
  url: string;
  /** Stops accepting, lets transfers finish within the bound, then ends everything. */
  close(): Promise<void>;
}

function countRequests(app: FastifyInstance, metrics: Metrics): void {
  app.addHook('onResponse', async (request, reply) => {
    const route = request.routeOptions.url ?? 'none';
    const seconds = reply.elapsedTime / 1000;
    metrics.requests.inc({ method: request.method, route, status: reply.raw.statusCode });
    metrics.requestSeconds.observe({ route }, seconds);
    const quiet = route === API.health || route === API.metrics;
    const line = { method: request.method, route, status: reply.raw.statusCode, seconds };
    request.log[quiet ? 'debug' : 'info'](line, 'request');
  });
}

function watchRoutes(app: FastifyInstance, store: ImageStore, metrics: Metrics): void {
  app.get(API.health, async (request, reply) => {
    try {
      await Promise.all([store.catalog.ping(), store.blobs.check()]);
      return { status: 'ok' };
    } catch (error) {
      request.log.error({ error }, 'not healthy');
      return reply.code(503).send(errorBody(clientError(error)));
    }
  });
  app.get(API.metrics, async (_request, reply) =>
    reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
  );
}

/** What guards the server; undefined: nothing. @throws 'usage', 'not-found', 'permission' */
async function tokensOf(
  { token, tokensFile }: ServerOptions,
  log: Logger,
): Promise<{ list(): Promise<TokenList> } | undefined> {
  if (tokensFile !== undefined) return TokenFile.open(tokensFile, log);
  if (token === undefined) return undefined;
  const list = new TokenList([entryOf('--token-file', token)]);
  return { list: async () => list };
}

/**
 * Opens the data directory and serves it.
 * @throws 'busy' where another process has the directory or the address, 'usage' for a bad address
 */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const log = options.log ?? makeLogger('serve');
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const address = parseListen(options.listen);
  const tokens = await tokensOf(options, log);
  const metrics = new Metrics();
  const store = await ImageStore.open({
    dataDir: options.dataDir,
    log,
    limits,
    onEncoded(seconds, _record, patches) {
      if (patches) {
        metrics.patchEncodes.inc();
        metrics.patchSeconds.inc(seconds);
        return;
      }
      metrics.encodes.inc();
      metrics.encodeSeconds.observe(seconds);
    },
    onPatchRefused: () => metrics.patchesRefused.inc(),
    onReordered: (result) => metrics.reorders.inc({ result }),
  });
  const { rateBitsPerSecond } = options;
  const limiter = rateBitsPerSecond === undefined ? undefined : new RateLimiter(rateBitsPerSecond);
  const app = makeApp(log, limits, (kind) => metrics.errors.inc({ kind }));
  countRequests(app, metrics);
  if (tokens !== undefined) {
    const readingIsOpen = options.tokensFile === undefined;
    guard(app, { tokens, readingIsOpen, metrics, log, stallMs: limits.stallMs });
  }
  watchRoutes(app, store, metrics);
  imageRoutes(app, {
    store,
    metrics,
    upload: { maxBytes: limits.uploadMaxBytes, stallMs: limits.stallMs, hints: IMAGE_HINTS },
    registryLogin: options.registryLogin ?? false,
    hostsDirs: options.hostsDirs ?? [],
  });
  traceRoutes(app, {
    store,
    metrics,
    upload: { maxBytes: limits.traceMaxBytes, stallMs: limits.stallMs, hints: TRACE_HINTS },
  });
  deltaRoutes(app, store, { limiter, metrics, stallMs: limits.stallMs });
  app.server.maxConnections = limits.connectionsMax;
  try {
    // The address is told by whoever started the server, once.
    await app.listen({ ...address, listenTextResolver: () => 'ready' });
  } catch (error) {
    await store.close();
    throw listenError(error, options.listen);
  }
  if (options.tokensFile === undefined && !isLocal(address.host)) {
    log.warn({ listen: options.listen }, 'whoever reaches this address can read every image');
  }
  store.traces.start();
  store.patches.start();
  metrics.watchPatches(() => store.bundles.patching + store.patches.waiting);
  const cleaning = setInterval(() => {
    store.clean().catch((error: unknown) => log.error({ error }, 'clean-up failed'));
  }, limits.cleanMs);
  let closed: Promise<void> | undefined;
  return {
    url: formatUrl(app.server.address()),
    close() {
      closed ??= end(app, store, limits.shutdownMs).finally(() => clearInterval(cleaning));
      return closed;
    },
  };
}

function listenError(error: unknown, listen: string): unknown {
  switch ((error as NodeJS.ErrnoException).code) {
    case 'EADDRINUSE':
      return new FirstlightError('busy', `${listen} is in use`, {
        hint: 'choose another address with --listen, or stop what listens there',
        cause: error,
      });
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return new FirstlightError('usage', `${listen} is no address of this machine`, {
        hint: 'write --listen HOST:PORT',
        cause: error,
      });
    default:
      return error;
  }
}

async function end(app: FastifyInstance, store: ImageStore, shutdownMs: number): Promise<void> {
  const timer = setTimeout(() => app.server.closeAllConnections(), shutdownMs);
  try {
    await app.close();
  } finally {
    clearTimeout(timer);
    await store.close();
  }
}
