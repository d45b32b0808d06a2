// `firstlight serve`: the delta server in the foreground.
import { once } from 'node:events';
import { splitHostsDirs } from '../../image/registry-hosts.ts';
import { parseRate } from '../../serve/rate.ts';
import { startServer } from '../../serve/server.ts';
import type { Context } from '../context.ts';
import { readToken } from '../token.ts';

export async function run(context: Context): Promise<undefined> {
  const { settings, signal } = context;
  const dataDir = settings.text('data');
  const rateBitsPerSecond = parseRate(settings.text('rate'));
  const tokensFile = settings.optional('tokens');
  // Where there is such a list, the other file is that of commands on this machine.
  const token = tokensFile === undefined ? await readToken(settings) : undefined;
  const server = await startServer({
    dataDir,
    listen: settings.text('listen'),
    registryLogin: settings.flag('registry-login'),
    hostsDirs: splitHostsDirs(settings.text('hosts-dir')),
    token,
    tokensFile,
    ...(rateBitsPerSecond === undefined ? {} : { rateBitsPerSecond }),
  });
  if (context.json) context.printJson({ url: server.url, pid: process.pid });
  else context.print(`listening on ${server.url}`);
  // A server is ended by a signal: that is its way to go, and no failure.
  if (!signal.aborted) await once(signal, 'abort');
  await server.close();
  return undefined;
}
