// The C programs that touch mounts on behalf of tests, compiled once for each state of their sources.
// What does not live here: what they are told to do.
import { createHash } from 'node:crypto';
import { access, mkdir, readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { REPOSITORY } from '../lib/images.ts';
import { must } from '../lib/proc.ts';

const HERE = join(REPOSITORY, 'test/posix');
const CACHE = join(REPOSITORY, '.cache/posix');

/** Directories below test/posix with the sources of one program each. */
export type Program = 'interpreter' | 'exerciser' | 'racer' | 'crasher' | 'crossing' | 'powercut';

/**
 * Path of a compiled program. It is linked statically, so that it also runs as a file of an image
 * and after chroot.
 */
export async function program(name: Program): Promise<string> {
  const directory = join(HERE, name);
  const sources = (await readdir(directory)).filter((file) => /\.[ch]$/.test(file)).sort();
  const hash = createHash('sha256');
  for (const file of sources) hash.update(file).update(await readFile(join(directory, file)));
  const path = join(CACHE, `${name}-${hash.digest('hex').slice(0, 16)}`);
  const there = await access(path).then(
    () => true,
    () => false,
  );
  if (there) return path;
  await mkdir(CACHE, { recursive: true });
  const aside = `${path}.${process.pid}`;
  const flags = ['-std=gnu11', '-O2', '-g', '-Wall', '-Wextra', '-Werror', '-static', '-pthread'];
  const inputs = sources.filter((file) => file.endsWith('.c')).map((file) => join(directory, file));
  await must('gcc', [...flags, '-o', aside, ...inputs]);
  // Test files run side by side: whoever is last replaces what is equal.
  await rename(aside, path);
  return path;
}
