// The bearer token of a server: read from its file, and sent with what changes something there.
import { readFile } from 'node:fs/promises';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Context } from './context.ts';
import type { Settings } from './settings.ts';

const TOKEN_MAX_CHARS = 4096;

/** The token in the file of --token-file; undefined where none is given. @throws 'usage', 'not-found', 'permission' */
export async function readToken(settings: Settings): Promise<string | undefined> {
  const path = settings.optional('token-file');
  if (path === undefined) return undefined;
  let text: string;
  try {
    text = (await readFile(path, 'utf8')).trim();
  } catch (error) {
    throw toFirstlightError(error);
  }
  // What stands in the file is told to nobody, not even in an error.
  if (/^[\x21-\x7e]+$/.test(text) && text.length <= TOKEN_MAX_CHARS) return text;
  throw new FirstlightError('usage', `${path} holds no token`, {
    hint: 'put the token on one line of it and nothing else',
  });
}

/** Says once where a secret goes to another machine without TLS. */
export function warnOfPlainText(context: Context, secret: string): void {
  const server = new URL(context.settings.text('server'));
  const local = /^(localhost|127\.|\[::1\])/.test(server.hostname);
  if (server.protocol === 'https:' || local) return;
  context.note(`firstlight: ${secret} goes to ${server.host} unencrypted`);
}

/** The header of a request that changes something; empty where there is no token. */
export async function tokenHeader(context: Context): Promise<Record<string, string>> {
  const token = await readToken(context.settings);
  if (token === undefined) return {};
  warnOfPlainText(context, 'the token');
  return { authorization: `Bearer ${token}` };
}
