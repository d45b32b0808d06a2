// `firstlight image rm NAME:TAG...`: removes images from a delta server.
import { API } from '../../delta/protocol.ts';
import type { Context } from '../context.ts';
import { checkImage, namedPlatform } from '../mount-request.ts';
import { askServer, imagePath } from '../server-client.ts';
import { tokenHeader } from '../token.ts';

async function remove(context: Context, name: string): Promise<void> {
  const data = context.settings.optional('data');
  const platform = namedPlatform(context);
  if (data !== undefined) {
    const { withStore } = await import('../local-server.ts');
    await withStore(data, (store) => store.remove(name, platform));
    return;
  }
  const body = await askServer(context.settings.text('server'), imagePath(API.images, name), {
    method: 'DELETE',
    headers: await tokenHeader(context),
    ...(platform === undefined ? {} : { query: { platform } }),
    signal: context.signal,
  });
  await body.dump();
}

export async function run(context: Context, args: string[]): Promise<undefined> {
  for (const name of args) await checkImage(name);
  for (const name of args) {
    await remove(context, name);
    if (!context.json) context.print(`removed ${name}`);
  }
  if (context.json) context.printJson({ removed: args });
  return undefined;
}
