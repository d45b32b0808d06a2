// The unique contents of an image in a worker's store, as a list and as one compressed stream: what
// the baseline of bench/receive starts from. What does not live here: the measurement.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createReadStream, createWriteStream, readdirSync, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';

/** One file of content/, named below it. */
export interface ContentFile {
  /** `<2 hex>/<62 hex>`. */
  name: string;
  digest: string;
  bytes: number;
}

/** Contents of the only image of a store, in the order of its TOC. */
export async function contentsOf(root: string): Promise<ContentFile[]> {
  const images = readdirSync(join(root, 'images'));
  if (images.length !== 1) throw new Error(`${root} holds ${images.length} images, not one`);
  const slots = await readFile(join(root, 'images', images[0]!, 'contents'));
  return Array.from({ length: slots.length / 32 }, (_, i) => {
    const digest = slots.toString('hex', i * 32, i * 32 + 32);
    const name = `${digest.slice(0, 2)}/${digest.slice(2)}`;
    return { name, digest, bytes: statSync(join(root, 'content', name)).size };
  });
}

/** Compresses the contents, one after the other, into one zstd file. */
export async function compressContents(
  root: string,
  contents: ContentFile[],
  level: number,
  path: string,
): Promise<void> {
  const zstd = spawn('zstd', ['-q', `-${level}`, '-c'], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = once(zstd, 'exit');
  const written = pipeline(zstd.stdout, createWriteStream(path));
  for (const { name } of contents) {
    for await (const chunk of createReadStream(join(root, 'content', name))) {
      if (!zstd.stdin.write(chunk)) await once(zstd.stdin, 'drain');
    }
  }
  zstd.stdin.end();
  const [code] = (await ended) as [number];
  await written;
  if (code !== 0) throw new Error(`zstd ended with ${code}`);
}

/** Path in a store's content/ of what stands at `path`, a file with the same bytes. */
export function contentFile(root: string, path: string): string {
  const digest = execFileSync('sha256sum', [path], { encoding: 'utf8' }).slice(0, 64);
  return join(root, 'content', digest.slice(0, 2), digest.slice(2));
}
