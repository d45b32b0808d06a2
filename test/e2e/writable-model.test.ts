// A few trees of the model test, so that every change meets it; test/long/writable-model.test.ts has the
// rest, and the comparisons with kernel overlayfs.
import test from 'ava';
import { modelTest } from '../posix/model-run.ts';
import { wantedSubjects } from '../posix/subject.ts';

if (wantedSubjects().includes('fuse')) {
  test.serial('2.5 `--rw fuse` behaves as a plain directory does, on a few trees', async (t) => {
    await modelTest(t, {
      reference: 'plain',
      subject: 'fuse',
      vocabulary: { directoriesMove: true, linksInImage: true, layered: false },
      trees: 3,
      sizes: { image: 60, batches: 3, batch: 60 },
      // Clause 10.3: a reader from before a change.
      excuse: (command, reference, answer) =>
        command.startsWith('read reader ') && reference.startsWith('ok') && answer.startsWith('ok'),
    });
  });
}
