// Random operations on writable mounts and on what they are held against: a plain directory with the
// unpacked image, and kernel overlayfs over the same image.
import test from 'ava';
import { modelTest } from '../posix/model-run.ts';
import { wantedSubjects } from '../posix/subject.ts';

const SIZES = { image: 60, batches: 5, batch: 60 };
/** What kernel overlayfs cannot do with directories and hard links of the image is left out against it. */
const LAYERS = { directoriesMove: false, linksInImage: false };

/** Clause 10.3: a reader from before a change. */
const oldReader = (command: string, reference: string, answer: string) =>
  command.startsWith('read reader ') && reference.startsWith('ok') && answer.startsWith('ok');
/** Clause 9.8, on either side. */
const noAttributes = (command: string, ...answers: string[]) =>
  /xattr /.test(command) && answers.every((answer) => /^(ENODATA|EOPNOTSUPP)$/.test(answer));

test('2.3 `--rw overlay` behaves as a plain directory does, but for section 9', async (t) => {
  await modelTest(t, {
    reference: 'plain',
    subject: 'overlay',
    vocabulary: { ...LAYERS, layered: false },
    trees: 8,
    sizes: SIZES,
    excuse: (...answer) => noAttributes(...answer) || oldReader(...answer),
  });
});

if (wantedSubjects().includes('fuse')) {
  test('2.5 `--rw fuse` behaves as a plain directory does, but for section 10', async (t) => {
    await modelTest(t, {
      reference: 'plain',
      subject: 'fuse',
      vocabulary: { directoriesMove: true, linksInImage: true, layered: false },
      trees: 35,
      sizes: SIZES,
      excuse: oldReader,
    });
  });

  test('2.6 `--rw fuse` behaves as `--rw overlay` does on the same image, but for section 9', async (t) => {
    await modelTest(t, {
      reference: 'overlay',
      subject: 'fuse',
      vocabulary: { ...LAYERS, layered: true },
      trees: 10,
      sizes: SIZES,
      excuse: (...answer) => noAttributes(...answer) || oldReader(...answer),
    });
  });
}
