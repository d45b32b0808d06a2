// The image that the exerciser, the racer and the crasher work on. What does not live here: what they
// do (their own sources), and when (the tests).
import { randomInt } from 'node:crypto';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { must } from '../lib/proc.ts';
import { noise } from '../lib/small-image.ts';
import { program } from './programs.ts';

/** Directories for the racer, files for the crasher. */
export const RACE_DIRECTORIES = 100;
export const CRASH_FILES = 4000;
/** Sizes of the exerciser's files: none, within a page, about a part, above it. */
const EXERCISED = [0, 100, 4096, 70_000, 262_144, 400_000];

/** Paths of the exerciser's files in the image, and one that is not in it. */
export const EXERCISED_FILES = [...EXERCISED.map((bytes) => `exercise/f${bytes}`), 'exercise/new'];

/** Builds the tar of the image below `dir`. */
export async function stressImage(dir: string): Promise<string> {
  const root = join(dir, 'stress-root');
  for (const name of ['exercise', 'race', 'crash']) {
    await mkdir(join(root, name), { recursive: true });
  }
  for (const bytes of EXERCISED) {
    await writeFile(join(root, `exercise/f${bytes}`), noise(`exercise ${bytes}`, bytes));
  }
  await must(await program('racer'), ['fill', join(root, 'race'), String(RACE_DIRECTORIES)]);
  await must(await program('crasher'), ['fill', join(root, 'crash'), String(CRASH_FILES)]);
  const tar = join(dir, 'stress.tar');
  await must('tar', ['-C', root, '--format=pax', '--numeric-owner', '-cf', tar, '.']);
  await rm(root, { recursive: true });
  return tar;
}

/** A seed to print and to repeat: FIRSTLIGHT_SEED, or a new one. */
export function seedOfRun(): number {
  const { FIRSTLIGHT_SEED } = process.env;
  return FIRSTLIGHT_SEED === undefined ? randomInt(1, 2 ** 31) : Number(FIRSTLIGHT_SEED);
}
