// `firstlight image rm NAME:TAG...`: removes images from a delta server.
import { API } from '../../delta/protocol.ts';
import type { Context } from '../context.ts';
import { checkImage, namedPlatform } from '../mount-request.ts';
import { imagePath } from '../server-client.ts';
import { ask } from '../token.ts';

async function remove(context: Context, name: string): Promise<void> {
  const data = context.settings.optional('data');
  const platform = namedPlatform(context);
  if (data !== undefined) {
    const { withStore } = await import('../local-server.ts');
    await withStore(data, (store) => store.remove(name, platform));
    return;
  }
  const body = await ask(context, imagePath(API.images, name), {
    method: 'DELETE',
    ...(platform === undefined ? {} : { query: { platform } }),
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
