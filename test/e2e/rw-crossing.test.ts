// First truncations of files of the image that meet renames and removals of the same files, while
// readers have them open: nobody waits for the other for ever.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { must, run } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';
import { program } from '../posix/programs.ts';
import { closeSubject, openSubject, serveTar } from '../posix/subject.ts';

const FILES = 100;

test.serial(
  'truncations and renames of one file that is open elsewhere do not wait for each other',
  async (t) => {
    const stage = await Stage.open(t);
    const root = join(stage.dir, 'crossing-root');
    await mkdir(join(root, 'd'), { recursive: true });
    for (let i = 0; i < FILES; i++) await writeFile(join(root, `d/f${i}`), `content of ${i}`);
    const tar = join(stage.dir, 'crossing.tar');
    await must('tar', ['-C', root, '-cf', tar, '.']);
    await serveTar(stage, tar, 'crossing:1');
    const directory = await openSubject(stage, 'fuse', tar, 'crossing:1');
    const args = [join(directory, 'd'), String(FILES)];
    const { code, stdout } = await run(await program('crossing'), args);
    t.is(code, 0, String(stdout));
    const names = (await must('ls', [join(directory, 'd')])).toString().trim().split('\n');
    t.deepEqual(names.sort(), Array.from({ length: FILES / 2 }, (_, i) => `g${2 * i}`).sort());
    await closeSubject(stage, 'fuse', directory);
  },
);
