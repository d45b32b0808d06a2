// The bearer token (RFC 6750) that a server with one wants for whatever changes something: intakes,
// removals, reports. What is only read is open to whoever reaches the server.
import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import { FirstlightError } from '../errors/errors.ts';
import { dropRest } from './client.ts';

const READING = new Set(['GET', 'HEAD', 'OPTIONS']);
const LEAST_CHARS = 8;

/** @throws 'usage' where it can be no token: the grammar of RFC 6750, and not too short to be guessed */
export function checkToken(token: string): void {
  if (/^[A-Za-z0-9\-._~+/]+=*$/.test(token) && token.length >= LEAST_CHARS) return;
  throw new FirstlightError('usage', "the server's token is no bearer token", {
    hint: `use at least ${LEAST_CHARS} letters, digits or -._~+/ on one line, such as "openssl rand -hex 24" prints`,
  });
}

function digestOf(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** Refuses changes without the token. */
export function guardChanges(app: FastifyInstance, token: string, stallMs: number): void {
  // Of equal length whatever comes, so that the time of the comparison tells nothing.
  const wanted = digestOf(token);
  app.addHook('onRequest', async (request, reply) => {
    if (READING.has(request.method)) return;
    const given = /^bearer +(\S+) *$/i.exec(request.headers.authorization ?? '')?.[1];
    if (given !== undefined && timingSafeEqual(digestOf(given), wanted)) return;
    dropRest(request, reply, stallMs);
    reply.header('www-authenticate', 'Bearer realm="firstlight"');
    throw new FirstlightError(
      'unauthorized',
      given === undefined ? 'the server wants a token for this' : 'the server wants another token',
      { hint: 'give the file that holds it with --token-file' },
    );
  });
}
