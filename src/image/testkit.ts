// For the tests of this folder: layers made in memory, sinks that remember, trees as flat lists.
// Not used by the program.
import { createHash } from 'node:crypto';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import tarStream from 'tar-stream';
import { sha256Digest } from './digest.ts';
import { type MergeOptions, mergeImage } from './merge.ts';
import type { ContentSink, ImageSource } from './source.ts';
import type { Inode, TreeNode } from './tree.ts';

/** An entry for {@link pack}: the header of tar-stream's pack, and a body. */
export interface Packed {
  name: string;
  type?: 'file' | 'directory' | 'symlink' | 'link' | 'character-device' | 'block-device' | 'fifo';
  body?: Buffer | string;
  linkname?: string;
  mode?: number;
  uid?: number;
  gid?: number;
  mtime?: Date;
  devmajor?: number;
  devminor?: number;
  pax?: Record<string, string>;
}

/** A tar made by tar-stream. */
export async function pack(entries: Packed[]): Promise<Buffer> {
  const tar = tarStream.pack();
  const whole = buffer(tar as unknown as Readable);
  for (const { body, ...header } of entries) {
    const bytes = Buffer.from(body ?? '');
    tar.entry({ mtime: new Date(0), ...header } as tarStream.Header, bytes as unknown as string);
  }
  tar.finalize();
  return whole;
}

/** Shorthand for {@link pack}: `path` a file, `path/` a directory, `path -> x` a symlink, `path = x` a link. */
export function names(...list: string[]): Packed[] {
  return list.map((text): Packed => {
    const [name, how, linkname] = text.split(' ') as [string, string?, string?];
    if (how === '->') return { name, type: 'symlink', linkname: linkname! };
    if (how === '=') return { name, type: 'link', linkname: linkname! };
    if (name.endsWith('/')) return { name, type: 'directory' };
    return { name, body: how ?? `content of ${name}` };
  });
}

/** An image of plain layers in memory. */
export function imageOf(layers: Buffer[], diffIds = layers.map(sha256Digest)): ImageSource {
  return {
    manifest: Buffer.from('{}'),
    config: Buffer.from('{}'),
    digest: sha256Digest(Buffer.from('{}')),
    platform: 'linux/amd64',
    layers: layers.map((bytes, index) => ({
      digest: sha256Digest(bytes),
      diffId: diffIds[index]!,
      mediaType: 'application/vnd.oci.image.layer.v1.tar',
      bytes: bytes.length,
      open: async () => Readable.from(pieces(bytes), { objectMode: false }),
    })),
    close: async () => {},
  };
}

function* pieces(bytes: Buffer): Generator<Buffer> {
  // An odd size, so that headers and bodies straddle chunks.
  for (let at = 0; at < bytes.length; at += 10007) yield bytes.subarray(at, at + 10007);
}

/** A sink that keeps contents in memory. */
export class MemorySink implements ContentSink {
  readonly contents = new Map<string, Buffer>();
  puts = 0;

  async put(content: Readable, bytes: number): Promise<string> {
    this.puts++;
    const all = await buffer(content);
    if (all.length !== bytes) throw new Error(`${all.length} bytes, not ${bytes}`);
    const digest = createHash('sha256').update(all).digest('hex');
    this.contents.set(digest, all);
    return digest;
  }
}

/** A merged image with its contents. */
export interface Merged {
  root: TreeNode;
  sink: MemorySink;
  /** Inode of a path, without leading slash; the root is ''. */
  at(path: string): Inode;
  has(path: string): boolean;
  text(path: string): string;
  /** All paths in byte order, directories with a slash at their end. */
  paths(): string[];
}

/** Merges layers made by {@link pack}. */
export async function merge(layers: Buffer[], options: MergeOptions = {}): Promise<Merged> {
  const sink = new MemorySink();
  const { root } = await mergeImage(imageOf(layers), sink, options);
  return view(root, sink);
}

export function view(root: TreeNode, sink: MemorySink): Merged {
  const find = (path: string): TreeNode | undefined => {
    let node: TreeNode | undefined = root;
    for (const name of path.split('/')) if (name !== '') node = node?.children?.get(name);
    return node;
  };
  const at = (path: string): Inode => {
    const node = find(path);
    if (node === undefined) throw new Error(`no ${path}`);
    return node.inode;
  };
  return {
    root,
    sink,
    at,
    has: (path) => find(path) !== undefined,
    text: (path) => {
      const inode = at(path);
      if (inode.type !== 'file') throw new Error(`${path} is a ${inode.type}`);
      return inode.size === 0 ? '' : sink.contents.get(inode.digest!)!.toString('latin1');
    },
    paths: () => {
      const all: string[] = [];
      const walk = (node: TreeNode, path: string) => {
        for (const child of node.children?.values() ?? []) {
          const name = `${path}${child.name}`;
          all.push(child.children === undefined ? name : `${name}/`);
          walk(child, `${name}/`);
        }
      };
      walk(root, '');
      return all.sort();
    },
  };
}
