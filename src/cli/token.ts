// The bearer token that commands show to the server: read from the file of --token-file, and sent with every request.
import type { Dispatcher } from 'undici';
import { isLoopback } from '../image/registry-http.ts';
import { bearer, readTokenFile } from '../receive/worker-token.ts';
import type { Context } from './context.ts';
import { askServer, type ServerRequest } from './server-client.ts';
import type { Settings } from './settings.ts';

/** The token in the file of --token-file; undefined where none is given. @throws 'usage', 'not-found', 'permission' */
export async function readToken(settings: Settings): Promise<string | undefined> {
  const path = settings.optional('token-file');
  return path === undefined ? undefined : readTokenFile(path);
}

const warned = new Set<string>();

/** Says once where a secret goes to another machine without TLS. */
export function warnOfPlainText(context: Context, secret: string): void {
  const server = new URL(context.settings.text('server'));
  if (server.protocol === 'https:' || isLoopback(server.host) || warned.has(secret)) return;
  warned.add(secret);
  context.note(`firstlight: ${secret} goes to ${server.host} unencrypted`);
}

/** Asks the server of the settings for a path, with the token where there is one. @throws as {@link askServer} */
export async function ask(
  context: Context,
  path: string,
  options: Omit<ServerRequest, 'signal'> = {},
): Promise<Dispatcher.ResponseData['body']> {
  const { settings, signal } = context;
  const token = await readToken(settings);
  if (token !== undefined) warnOfPlainText(context, 'the token');
  return askServer(settings.text('server'), path, {
    ...options,
    headers: {
      ...options.headers,
      ...(token === undefined ? {} : { authorization: bearer(token) }),
    },
    signal,
  });
}
