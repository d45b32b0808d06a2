// The test images (test/images) and what an independent tool makes of them.
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { must } from './proc.ts';

export const REPOSITORY = fileURLToPath(new URL('../..', import.meta.url));
const BUILD = join(REPOSITORY, 'test/images/build.sh');
const TREE_LIST = join(REPOSITORY, 'test/lib/tree-list.py');

export type TestImage = 'base' | 'redis' | 'layers' | 'python' | 'programs';

/** Directory of a test image; built where the cache lacks it, which may take minutes. */
export async function testImage(name: TestImage): Promise<string> {
  return (await must(BUILD, [name], { timeoutMs: 600_000 })).trim();
}

/** How an image is unpacked by a tool that is not ours. */
export type Unpacker =
  | { tool: 'umoci'; image: string; file: string }
  | { tool: 'tar'; image: string; file: string };

/** Everything that can be seen of a tree, as lines (test/lib/tree-list.py), by a child process. */
export async function listTree(dir: string, options: string[] = []): Promise<string> {
  return must('/usr/bin/python3', [TREE_LIST, dir, ...options], { timeoutMs: 280_000 });
}

/**
 * The tree of an image as umoci or GNU tar unpacks it, listed. Kept beside the image, since unpacking
 * takes longer than the rest of a test.
 */
export async function referenceTree(unpacker: Unpacker): Promise<string> {
  const key = createHash('sha256')
    .update(await readFile(TREE_LIST))
    .update(await readFile(join(unpacker.image, 'key')))
    .update(`${unpacker.tool} ${unpacker.file}`)
    .digest('hex')
    .slice(0, 16);
  const cached = join(unpacker.image, 'trees', key);
  try {
    return await readFile(cached, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }
  const work = await mkdtemp(join(tmpdir(), 'firstlight-reference-'));
  try {
    const root = join(work, 'root');
    await unpack(unpacker, root);
    const list = await listTree(root);
    await mkdir(join(unpacker.image, 'trees'), { recursive: true });
    await writeFile(`${cached}.${process.pid}`, list);
    await rename(`${cached}.${process.pid}`, cached);
    return list;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Unpacks an image into `root` (which does not exist yet). */
export async function unpack(unpacker: Unpacker, root: string): Promise<void> {
  const file = join(unpacker.image, unpacker.file);
  if (unpacker.tool === 'umoci') {
    await must('umoci', ['raw', 'unpack', '--image', file, root], { timeoutMs: 280_000 });
    return;
  }
  await mkdir(root);
  await must(
    'tar',
    ['-C', root, '--numeric-owner', '--xattrs', '--xattrs-include=*', '-xpf', file],
    { timeoutMs: 280_000 },
  );
}

/** The lines in which two lists differ, few enough to read; empty where they are equal. */
export function treeDifference(expected: string, actual: string): string[] {
  const wanted = expected.split('\n');
  const seen = actual.split('\n');
  const wantedSet = new Set(wanted);
  const seenSet = new Set(seen);
  return [
    ...wanted.filter((line) => !seenSet.has(line)).map((line) => `- ${line}`),
    ...seen.filter((line) => !wantedSet.has(line)).map((line) => `+ ${line}`),
  ]
    .sort((a, b) => (a.slice(2) < b.slice(2) ? -1 : 1))
    .slice(0, 40);
}
