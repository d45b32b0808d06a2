// Who may ask a server for what: every request that is not open wants a bearer token (RFC 6750) that is for it. What
// does not live here: the tokens (token.ts, token-file.ts).
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { API } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import { dropRest } from './client.ts';
import type { Metrics } from './metrics.ts';
import type { Scope, TokenEntry, TokenList } from './token.ts';

const READING = new Set(['GET', 'HEAD']);
/** What reading a path is; everything else is a change, but for a report. */
const READS: Record<string, Scope | 'open'> = {
  [API.health]: 'open',
  [API.metrics]: 'metrics',
  [API.delta]: 'fetch',
  [`${API.bundles}/:id`]: 'fetch',
  [API.images]: 'fetch',
  [`${API.images}/*`]: 'fetch',
  [`${API.chains}/:id`]: 'fetch',
  [API.traces]: 'report',
  [`${API.traces}/:id`]: 'report',
};

/** Refusals are logged at once, and then summed up for so long. */
const QUIET_MS = 60_000;

/** What a token must be for, to have a request of this path answered. */
export function scopeOf(method: string, route: string): Scope | 'open' {
  if (READING.has(method)) return READS[route] ?? 'change';
  return method === 'POST' && route === API.traces ? 'report' : 'change';
}

/** How a server is guarded. */
export interface GuardOptions {
  tokens: { list(): Promise<TokenList> };
  /** Only what changes something wants a token. */
  readingIsOpen: boolean;
  metrics: Metrics;
  log: Logger;
  stallMs: number;
}

/** Tells of refusals without a line for each: whoever guesses would fill the disk. */
class Refusals {
  readonly #log: Logger;
  #since = Number.NEGATIVE_INFINITY;
  #count = 0;

  constructor(log: Logger) {
    this.#log = log;
  }

  note(request: FastifyRequest, reason: string, name: string | undefined): void {
    this.#count++;
    const now = performance.now();
    if (now - this.#since < QUIET_MS) return;
    const line = { reason, client: request.ip, route: request.routeOptions.url, name };
    this.#log.warn({ ...line, refused: this.#count }, 'requests are refused');
    this.#since = now;
    this.#count = 0;
  }
}

/** Refuses every request without a token that is for it. */
export function guard(app: FastifyInstance, options: GuardOptions): void {
  const { metrics, stallMs, readingIsOpen } = options;
  const refusals = new Refusals(options.log);

  const refuse = (
    request: FastifyRequest,
    reply: FastifyReply,
    reason: 'missing' | 'unknown' | 'scope',
    name?: string,
  ) => {
    metrics.refused.inc({ reason });
    refusals.note(request, reason, name);
    if (!READING.has(request.method)) dropRest(request, reply, stallMs);
  };

  /** @throws 'unauthorized' */
  async function entryOf(request: FastifyRequest, reply: FastifyReply): Promise<TokenEntry> {
    const given = /^bearer +(\S+) *$/i.exec(request.headers.authorization ?? '')?.[1];
    const entry = given === undefined ? undefined : (await options.tokens.list()).find(given);
    if (entry !== undefined) return entry;
    refuse(request, reply, given === undefined ? 'missing' : 'unknown');
    reply.header('www-authenticate', 'Bearer realm="firstlight"');
    throw new FirstlightError(
      'unauthorized',
      given === undefined ? 'the server wants a token for this' : 'the server wants another token',
      { hint: 'give the file that holds it with --token-file' },
    );
  }

  app.addHook('onRequest', async (request, reply) => {
    const route = request.routeOptions.url;
    // Nothing is there: that is no secret.
    if (route === undefined) return;
    const scope = scopeOf(request.method, route);
    if (scope === 'open' || (readingIsOpen && READING.has(request.method))) return;
    const { name, scopes } = await entryOf(request, reply);
    if (scopes.has(scope)) return;
    refuse(request, reply, 'scope', name);
    throw new FirstlightError('permission', `the token of ${name} is not for "${scope}"`, {
      hint: "may= in the server's file of tokens says what it is for",
    });
  });

  if (readingIsOpen) return;
  app.addHook('onSend', async (_request, reply) => {
    // "public" would let a shared cache give it to those without a token (RFC 9111, 3.5).
    const header = reply.getHeader('cache-control');
    if (typeof header !== 'string') return;
    reply.header('cache-control', header.replace(/^public\b/, 'private'));
  });
}
