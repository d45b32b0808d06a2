// `firstlight image ls`: the images of a delta server.
import { API, type ImageSummary } from '../../delta/protocol.ts';
import type { Context } from '../context.ts';
import { formatBytes, formatTable, shortDigest } from '../print.ts';
import { ask } from '../token.ts';

async function list(context: Context): Promise<ImageSummary[]> {
  const data = context.settings.optional('data');
  if (data !== undefined) {
    const { withStore } = await import('../local-server.ts');
    return withStore(data, (store) => store.list());
  }
  const body = await ask(context, API.images);
  return (await body.json()) as ImageSummary[];
}

export async function run(context: Context): Promise<undefined> {
  const images = await list(context);
  if (context.json) {
    context.printJson(images);
    return undefined;
  }
  const rows = images.map((image) => [
    image.name,
    shortDigest(image.digest),
    image.platform,
    formatBytes(image.bytes),
    String(image.entries),
    image.added.replace('T', ' ').replace(/\..*$/, ''),
  ]);
  context.print(formatTable([['NAME', 'DIGEST', 'PLATFORM', 'SIZE', 'ENTRIES', 'ADDED'], ...rows]));
  return undefined;
}
