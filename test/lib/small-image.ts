// A small image whose bytes cannot be compressed, so that a transfer takes as long as its rate says,
// and the reader program that looks at it. Real images are in images.ts.
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { REPOSITORY } from './images.ts';
import { must } from './proc.ts';

/** What the image holds; paths are relative to its root. */
export interface SmallImage {
  /** The root filesystem as GNU tar wrote it. */
  tar: string;
  /** sha256 and bytes of each regular file. */
  files: Map<string, { sha256: string; bytes: number }>;
  /** Paths of many files of 40 KiB, of a file just below 1 MiB, of one of 12 MB, of a library of 3 MB. */
  small: string[];
  medium: string;
  large: string;
  library: string;
  /** What the library's `answer` returns. */
  answer: string;
}

/** Bytes that look random and are the same every time. */
export function noise(seed: string, bytes: number): Buffer {
  return createHash('shake128', { outputLength: bytes }).update(seed).digest();
}

/** Builds the image in `dir`: about 20 MB. */
export async function smallImage(dir: string): Promise<SmallImage> {
  const root = join(dir, 'small-root');
  const files: SmallImage['files'] = new Map();
  const add = async (path: string, data: Buffer) => {
    await mkdir(join(root, path, '..'), { recursive: true });
    await writeFile(join(root, path), data);
    const sha256 = createHash('sha256').update(data).digest('hex');
    files.set(path, { sha256, bytes: data.length });
    return path;
  };
  const small: string[] = [];
  for (let i = 0; i < 100; i += 1) {
    small.push(await add(`small/file-${String(i).padStart(3, '0')}`, noise(`small ${i}`, 40_960)));
  }
  const medium = await add('medium/just-below-one-part', noise('medium', 1_000_000));
  const large = await add('zz-large/twelve-parts', noise('large', 12_000_000));
  await mkdir(join(root, 'lib'), { recursive: true });
  const { built, answer } = await buildLibrary(dir);
  const library = await add('lib/liblarge.so', await readFile(built));
  const tar = join(dir, 'small.tar');
  await must('tar', ['-C', root, '--sort=name', '--format=pax', '-cf', tar, '.']);
  return { tar, files, small, medium, large, library, answer };
}

/** A shared library with 3 MB of data, and the sum of them, which its `answer` computes. */
async function buildLibrary(dir: string): Promise<{ built: string; answer: string }> {
  const data = noise('library', 3_000_000);
  await writeFile(join(dir, 'library.bin'), data);
  // .incbin in a section with code rights: the pages are mapped the way code is.
  const source = `
    __asm__(".section .text\\n.globl data\\ndata:\\n.incbin \\"library.bin\\"\\n"
            ".globl data_end\\ndata_end:\\n.byte 0\\n.text\\n");
    extern const unsigned char data[] __attribute__((visibility("hidden")));
    extern const unsigned char data_end[] __attribute__((visibility("hidden")));
    unsigned long answer(void) {
      unsigned long sum = 0;
      for (const unsigned char *p = data; p < data_end; p++) sum = sum * 31 + *p;
      return sum;
    }`;
  await writeFile(join(dir, 'library.c'), source);
  const built = join(dir, 'liblarge.so');
  await must('gcc', ['-O2', '-fPIC', '-shared', '-o', built, 'library.c'], { cwd: dir });
  let sum = 0n;
  for (const byte of data) sum = BigInt.asUintN(64, sum * 31n + BigInt(byte));
  return { built, answer: String(sum) };
}

/** Compiles test/lib/reader.c into `dir`; the path of the program. */
export async function buildReader(dir: string): Promise<string> {
  const program = join(dir, 'reader');
  await must('gcc', [
    '-O2',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-o',
    program,
    join(REPOSITORY, 'test/lib/reader.c'),
    '-ldl',
  ]);
  return program;
}
