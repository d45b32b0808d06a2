// Local image sources as one stream for the server: a file as it is, an OCI layout as a tar of the
// blobs that the wanted tag needs.
import { createReadStream } from 'node:fs';
import { lstat, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { pack } from 'tar-stream';
import { FirstlightError } from '../errors/errors.ts';
import { MANIFEST_BYTES_MAX } from '../image/limits.ts';
import { parseIndex } from '../image/manifest.ts';
import { chooseEntries } from '../image/oci-layout.ts';

/** A stream with its length. */
export interface Upload {
  stream: Readable;
  /** Bytes of the sources; a tar around them adds a little. */
  totalBytes: number;
}

async function readable(path: string): Promise<number> {
  try {
    const info = await stat(path);
    if (!info.isFile()) {
      throw new FirstlightError('usage', `${path} is not a file`, { hint: 'check the source' });
    }
    return info.size;
  } catch (cause) {
    if (cause instanceof FirstlightError) throw cause;
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ENOENT') {
      throw new FirstlightError('not-found', `${path} does not exist`, {
        hint: 'check the path',
        cause,
      });
    }
    throw cause;
  }
}

/** A file as it is. @throws FirstlightError `not-found` */
export async function uploadFile(path: string): Promise<Upload> {
  return {
    totalBytes: await readable(path),
    stream: createReadStream(path, { highWaterMark: 1 << 20 }),
  };
}

/** A reference to a blob, as far as it matters here; the server checks the rest. */
interface Descriptor {
  digest?: unknown;
}

interface Node {
  manifests?: Descriptor[];
  config?: Descriptor;
  layers?: Descriptor[];
}

async function readSmall(path: string): Promise<Buffer> {
  if ((await readable(path)) > MANIFEST_BYTES_MAX) {
    throw new FirstlightError('corrupt', `${path} is too large for a manifest`, {
      hint: 'check the layout',
    });
  }
  return readFile(path);
}

async function readNode(path: string): Promise<Node> {
  const bytes = await readSmall(path);
  try {
    return JSON.parse(bytes.toString()) as Node;
  } catch (cause) {
    throw new FirstlightError('corrupt', `${path} is not JSON`, {
      hint: 'check the layout',
      cause,
    });
  }
}

/** Path of a blob below the layout. */
function blobPath(descriptor: Descriptor): string {
  const match = /^(sha256|sha512):([0-9a-f]{64,128})$/.exec(String(descriptor.digest));
  if (match === null) {
    throw new FirstlightError('corrupt', `the layout names a blob "${String(descriptor.digest)}"`, {
      hint: 'check the layout',
    });
  }
  return `blobs/${match[1]}/${match[2]}`;
}

/** Every blob that the layout's index, or only a tag of it, refers to. */
async function blobsOf(directory: string, tag: string | undefined): Promise<Set<string>> {
  const path = join(directory, 'index.json');
  const index = await readSmall(path);
  const todo = chooseEntries(parseIndex(index, path), tag, directory).map(blobPath);
  const blobs = new Set<string>();
  for (let blob = todo.pop(); blob !== undefined; blob = todo.pop()) {
    if (blobs.has(blob)) continue;
    // A layout may hold some platforms of an index only; what is not there is not sent.
    const there = await lstat(join(directory, blob)).catch(() => undefined);
    if (there === undefined) continue;
    blobs.add(blob);
    const node = await readNode(join(directory, blob));
    todo.push(...(node.manifests ?? []).map(blobPath));
    for (const d of [node.config, ...(node.layers ?? [])]) {
      if (d !== undefined) blobs.add(blobPath(d));
    }
  }
  return blobs;
}

/**
 * An OCI layout as a tar of oci-layout, index.json and the blobs of a tag.
 * @param without  paths of blobs that the server has
 * @throws FirstlightError `not-found`, `corrupt`
 */
export async function uploadLayout(
  directory: string,
  tag: string | undefined,
  without: ReadonlySet<string> = new Set(),
): Promise<Upload> {
  const blobs = await blobsOf(directory, tag);
  const files: { name: string; bytes: number }[] = [];
  for (const name of ['oci-layout', 'index.json', ...blobs]) {
    if (without.has(name)) continue;
    const bytes = await stat(join(directory, name)).then(
      (info) => info.size,
      (error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return undefined;
        throw error;
      },
    );
    if (bytes !== undefined) files.push({ name, bytes });
  }
  const tar = pack();
  const fill = async () => {
    for (const { name, bytes } of files) {
      const entry = tar.entry({ name, size: bytes, mtime: new Date(0) });
      await pipeline(createReadStream(join(directory, name), { highWaterMark: 1 << 20 }), entry);
    }
    tar.finalize();
  };
  fill().catch((error: Error) => tar.destroy(error));
  const totalBytes = files.reduce((sum, file) => sum + file.bytes, 0);
  return { totalBytes, stream: Readable.from(tar) };
}
