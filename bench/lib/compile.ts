// The small programs that benches measure with: compiled where they are missing or older than what
// they are made of. What does not live here: what they do.
import { execFileSync } from 'node:child_process';
import { mkdirSync, renameSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Where compiled programs stand. */
const BUILT = fileURLToPath(new URL('../../.cache/bench/', import.meta.url));

/**
 * Path of a program, compiled by gcc (.c) or g++ (.cc).
 * @param source   its file; the program's name is the file's without its ending
 * @param headers  what else it is made of
 * @throws Error with the compiler's words
 */
export function compiled(source: URL, headers: URL[] = []): string {
  const path = fileURLToPath(source);
  const isC = path.endsWith('.c');
  const program = `${BUILT}${basename(path, isC ? '.c' : '.cc')}`;
  mkdirSync(BUILT, { recursive: true });
  const built = statSync(program, { throwIfNoEntry: false });
  const newest = Math.max(...[source, ...headers].map((url) => statSync(url).mtimeMs));
  if (built === undefined || built.mtimeMs < newest) {
    const partial = `${program}.${process.pid}`;
    const flags = [
      '-O2',
      '-Wall',
      '-Wextra',
      '-Werror',
      '-pthread',
      ...(isC ? [] : ['-std=c++20']),
    ];
    execFileSync(isC ? 'gcc' : 'g++', [...flags, '-o', partial, path]);
    // Another run may do the same: whole programs only.
    renameSync(partial, program);
  }
  return program;
}
