// Encoding in a thread: the same bytes as on the calling one, errors and aborts that arrive, and an
// event loop that stays free.
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { encodeBundleInWorker, type ThreadInput } from './encode-thread.ts';
import { asBase, bundleOf, imageOf, type TestImage, withDirectory } from './testing.ts';

const LARGE = Buffer.alloc(5 << 20);
for (let i = 0; i < LARGE.length; i++) LARGE[i] = (i * i) >>> 7;

function image(): TestImage {
  return imageOf({ a: { data: 'small' }, b: { data: LARGE }, c: { data: 'base has it' } });
}

/** Input whose contents stand in a new directory under `directory`. */
async function inDirectory(directory: string, made: TestImage): Promise<ThreadInput> {
  const contentDirectory = join(directory, 'content');
  for (const [digest, data] of made.contents) {
    await mkdir(join(contentDirectory, digest.slice(0, 2)), { recursive: true });
    await writeFile(join(contentDirectory, digest.slice(0, 2), digest.slice(2)), data);
  }
  const { manifest, config, toc, digests } = made;
  return { manifest, config, toc: toc.bytes, digests, bases: [], level: 1, contentDirectory };
}

test('a thread writes the same bundle', async (t) => {
  const base = asBase(imageOf({ x: { data: 'base has it' } }));
  const ranks = [{ content: 1, part: 3, rank: 0 }];
  await withDirectory(async (directory) => {
    const input = await inDirectory(directory, image());
    const bases = [{ ...base, toc: base.toc.bytes }];
    const path = join(directory, 'bundle');
    const progress: [number, number][] = [];
    const onProgress = (...step: [number, number]) => progress.push(step);
    const made = await encodeBundleInWorker({ ...input, bases, ranks }, path, { onProgress });
    const bundle = await readFile(path);
    t.is(made.bytes, bundle.length);
    t.true(bundle.equals(await bundleOf(image(), { bases: [base], ranks })));
    t.deepEqual(progress.at(-1), [progress.length, progress.length]);
    t.deepEqual((await readdir(directory)).sort(), ['bundle', 'content']);
  });
});

test('a damaged or missing content is an error, and nothing stays behind', async (t) => {
  await withDirectory(async (directory) => {
    const made = image();
    const input = await inDirectory(directory, made);
    const pathOf = (data: Buffer) => {
      const [digest] = [...made.contents].find(([, value]) => value.equals(data))!;
      return join(input.contentDirectory, digest.slice(0, 2), digest.slice(2));
    };
    const encode = () => encodeBundleInWorker(input, join(directory, 'bundle'));
    const changed = Buffer.from(LARGE);
    changed[3 << 20]! ^= 1;
    await writeFile(pathOf(LARGE), changed);
    const flipped = await t.throwsAsync(encode, { instanceOf: FirstlightError });
    t.is(flipped.kind, 'corrupt');
    t.regex(flipped.message, /is not what its digest says/);
    await writeFile(pathOf(LARGE), LARGE.subarray(0, 3 << 20));
    const short = await t.throwsAsync(encode, { instanceOf: FirstlightError });
    t.regex(short.message, /is shorter than/);
    await rm(pathOf(LARGE));
    const gone = await t.throwsAsync(encode, { instanceOf: FirstlightError });
    t.is(gone.kind, 'not-found');
    t.deepEqual(await readdir(directory), ['content']);
  });
});

test('a program that Node is given on its command line can encode', async (t) => {
  await withDirectory(async (directory) => {
    const input = await inDirectory(directory, image());
    const path = join(directory, 'bundle');
    const { manifest, config, toc, digests, contentDirectory } = input;
    const script = `
      import { encodeBundleInWorker } from ${JSON.stringify(new URL('./encode-thread.ts', import.meta.url).href)};
      const bytes = (text) => Buffer.from(text, 'base64');
      const made = await encodeBundleInWorker({
        manifest: bytes('${manifest.toString('base64')}'), config: bytes('${config.toString('base64')}'),
        toc: bytes('${toc.toString('base64')}'), digests: bytes('${digests.toString('base64')}'),
        bases: [], level: 1, contentDirectory: ${JSON.stringify(contentDirectory)},
      }, ${JSON.stringify(path)});
      console.log(made.bytes);`;
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--input-type=module',
      '--eval',
      script,
    ]);
    t.is(Number(stdout), (await readFile(path)).length);
  });
});

test('an abort stops it, and nothing stays behind', async (t) => {
  await withDirectory(async (directory) => {
    const input = { ...(await inDirectory(directory, image())), level: 19 };
    const aborter = new AbortController();
    const reason = new Error('the client has gone');
    const encoding = encodeBundleInWorker(input, join(directory, 'bundle'), {
      signal: aborter.signal,
      onProgress: () => aborter.abort(reason),
    });
    t.is(await t.throwsAsync(encoding), reason);
    t.deepEqual(await readdir(directory), ['content']);
  });
});
