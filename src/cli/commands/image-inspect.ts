// `firstlight image inspect NAME:TAG`: one image of a delta server.
import { API, type ImageDetail } from '../../delta/protocol.ts';
import type { Context } from '../context.ts';
import { checkImage, namedPlatform } from '../mount-request.ts';
import { imagePath } from '../server-client.ts';
import { ask } from '../token.ts';

async function inspect(context: Context, name: string): Promise<ImageDetail> {
  const data = context.settings.optional('data');
  const platform = namedPlatform(context);
  if (data !== undefined) {
    const { withStore } = await import('../local-server.ts');
    return withStore(data, (store) => store.inspect(name, platform));
  }
  const body = await ask(context, imagePath(API.images, name), {
    ...(platform === undefined ? {} : { query: { platform } }),
  });
  return (await body.json()) as ImageDetail;
}

export async function run(context: Context, args: string[]): Promise<undefined> {
  const [name = ''] = args;
  await checkImage(name);
  const image = await inspect(context, name);
  if (context.json) context.printJson(image);
  else context.print(JSON.stringify(image, null, 2));
  return undefined;
}
