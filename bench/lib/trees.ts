// The trees that the benches measure on: a generated root filesystem of exactly 100,000 entries,
// and the real images of test/images. What does not live here: unpacking and mounting them.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createWriteStream, existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { finished } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import { type Header, pack as tarPack } from 'tar-stream';

const CACHE = fileURLToPath(new URL('../../.cache/bench/', import.meta.url));
const IMAGES = fileURLToPath(new URL('../../test/images/', import.meta.url));

/** Names in the tree, the root included: what a TOC of it has as rows. */
export const ENTRIES = 100_000;
const DIRECTORIES = 3_000;
const SYMLINKS = 3_000;
/** The one large file, for sequential reads. */
export const LARGE_FILE = 'large/blob.bin';
const LARGE_BYTES = 256 << 20;

/** Deterministic numbers in [0, 1): the tree is the same on every machine (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes of a file: mostly small, as in a tree of packages (mean 1.3 KB). */
function sizeOf(random: () => number): number {
  const kind = random();
  if (kind < 0.01) return 0;
  if (kind < 0.8) return 40 + Math.floor(random() * 1000);
  if (kind < 0.98) return 1000 + Math.floor(random() * 3000);
  return 8000 + Math.floor(random() * 24000);
}

/** Directory paths, nested up to eight deep, the root not among them. */
function directories(random: () => number): string[] {
  const paths = ['large', 'pkg'];
  const depth = new Map([['pkg', 1]]);
  const parents = ['pkg'];
  while (paths.length < DIRECTORIES - 1) {
    const parent = parents[Math.floor(random() * parents.length)]!;
    const path = `${parent}/${['lib', 'module', 'src', 'dist'][paths.length % 4]}-${paths.length}`;
    paths.push(path);
    const level = depth.get(parent)! + 1;
    depth.set(path, level);
    if (level < 8) parents.push(path);
  }
  return paths;
}

async function writeTree(path: string): Promise<void> {
  const random = randomNumbers(1);
  const pack = tarPack();
  const out = createWriteStream(path);
  const done = finished(pack.pipe(out));
  const mtime = new Date(1_700_000_000_000);
  const put = async (header: Partial<Header> & { name: string }, data?: Buffer): Promise<void> => {
    const whole = { ...header, mtime, uid: 0, gid: 0 };
    if (data === undefined) pack.entry(whole);
    else pack.entry(whole, data);
    if (out.writableNeedDrain) await once(out, 'drain');
  };

  const paths = directories(random);
  await put({ name: './', type: 'directory', mode: 0o755 });
  for (const name of paths) await put({ name: `${name}/`, type: 'directory', mode: 0o755 });

  const words = Buffer.from(
    Array.from({ length: 20_000 }, () => Math.floor(random() * 1e6).toString(36)).join(' '),
  );
  const files = ENTRIES - 1 - paths.length - SYMLINKS - 1;
  for (let i = 0; i < files; i++) {
    const data = Buffer.alloc(sizeOf(random));
    const start = Math.floor(random() * (words.length - data.length));
    words.copy(data, 0, start, start + data.length);
    data.write(`${i}\n`);
    const directory = paths[1 + (i % (paths.length - 1))]!;
    await put({ name: `${directory}/file-${i}.js`, mode: 0o644 }, data);
    if (i < SYMLINKS) {
      await put({ name: `${directory}/link-${i}`, type: 'symlink', linkname: `file-${i}.js` });
    }
  }
  const large = Buffer.alloc(LARGE_BYTES);
  for (let at = 0; at < LARGE_BYTES; at += 4096) large.writeDoubleLE(random(), at);
  await put({ name: LARGE_FILE, mode: 0o644 }, large);
  pack.finalize();
  await done;
}

/** Path of the generated tree as a tar; made on the first call, kept in .cache/bench. */
export async function bigTree(): Promise<string> {
  mkdirSync(CACHE, { recursive: true });
  // A change of the generator makes another file.
  const source = readFileSync(fileURLToPath(import.meta.url));
  const key = createHash('sha256').update(source).digest('hex').slice(0, 12);
  const path = `${CACHE}tree-${ENTRIES}-${key}.tar`;
  if (!existsSync(path)) {
    process.stderr.write('generating a tree of 100,000 entries (once)\n');
    await writeTree(`${path}.partial`);
    renameSync(`${path}.partial`, path);
  }
  return path;
}

/** Directory of a real image of test/images, built on the first call. */
export function realImage(name: 'redis' | 'python' | 'programs'): string {
  const out = execFileSync('bash', [`${IMAGES}build.sh`, name], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return out.trim().split('\n').at(-1)!;
}

/** Unpacks a tar as root, the way a container runtime lays a layer down. */
export function unpack(tar: string, directory: string): void {
  execFileSync('tar', [
    '-xpf',
    tar,
    '-C',
    directory,
    '--numeric-owner',
    '--xattrs',
    '--xattrs-include=*',
  ]);
}
