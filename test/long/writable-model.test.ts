// Random operations on writable mounts and on what they are held against: a plain directory with the
// unpacked image, and kernel overlayfs over the same image.
import test from 'ava';
import { modelTest } from '../posix/model-run.ts';
import { wantedSubjects } from '../posix/subject.ts';

const LAYERS = { directoriesMove: false, linksInImage: false };
const SIZES = { image: 60, batches: 5, batch: 60 };

if (wantedSubjects().includes('overlay')) {
  test('--rw overlay behaves as a plain directory', async (t) => {
    await modelTest(t, {
      reference: 'plain',
      subject: 'overlay',
      vocabulary: { ...LAYERS, layered: false },
      trees: 10,
      sizes: SIZES,
      // Clause 9.8.
      excuse: (command, reference, answer) =>
        /xattr /.test(command) && reference === 'ENODATA' && answer === 'EOPNOTSUPP',
    });
  });
}
