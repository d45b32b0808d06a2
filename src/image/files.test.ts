// Files of a tar that is read in place.
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import test from 'ava';
import { pack } from 'tar-stream';
import { tarFiles } from './files.ts';

test('an archive of many layers is read without a warning, and closes', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-files-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const tar = pack();
  for (let i = 0; i < 20; i++) tar.entry({ name: `layer${i}` }, `content ${i}`);
  tar.finalize();
  const path = join(directory, 'archive.tar');
  await writeFile(path, await buffer(tar));
  const warnings: Error[] = [];
  const hear = (warning: Error) => warnings.push(warning);
  process.on('warning', hear);
  t.teardown(() => process.off('warning', hear));
  const file = await open(path, 'r');
  const files = await tarFiles(file, () => file.close());
  for (let i = 0; i < 20; i++) {
    t.is((await buffer(await files.open(`layer${i}`, 'test'))).toString(), `content ${i}`);
  }
  await files.close();
  // Warnings are told in a later turn.
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual(warnings.map(String), []);
});
