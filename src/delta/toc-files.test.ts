import test from 'ava';
import fc from 'fast-check';
import { anyImage, imageOf } from './testing.ts';
import { filesOfToc } from './toc-files.ts';

test('every regular file is found by path, size and content', (t) => {
  fc.assert(
    fc.property(anyImage, ({ toc, digests }) => {
      const files = filesOfToc(toc, digests);
      let count = 0;
      for (let row = 0; row < toc.rows; row++) {
        if (!toc.isFile(row)) continue;
        count++;
        const file = files.file(toc.path(row))!;
        t.is(file.sizeBytes, toc.size(row));
        const content = toc.content(row);
        if (content < 0) t.is(file.digest, undefined);
        else {
          t.is(file.digest, digests.toString('hex', content * 32, content * 32 + 32));
          t.is(files.withDigest(file.digest!)?.digest, file.digest);
        }
      }
      t.is([...files.files()].length, count);
    }),
    { numRuns: 100 },
  );
});

test('contents that are not known yet are told apart, and equal ones together', (t) => {
  const { toc, digests } = imageOf({ a: { data: 'x' }, b: { data: 'y' }, c: { data: 'x' } });
  const known = Buffer.from(digests);
  known.fill(0, 32, 64);
  for (const given of [known, known.subarray(0, 32)]) {
    const files = filesOfToc(toc, given);
    t.is(files.file('a')!.digest, digests.toString('hex', 0, 32));
    t.is(files.file('c')!.digest, files.file('a')!.digest);
    t.is(files.file('b')!.digest, 'content 1');
  }
});
