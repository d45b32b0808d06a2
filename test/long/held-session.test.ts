// A mount whose session neither ends nor answers: nobody who comes upon it hangs, and it is left as it is.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { REPOSITORY } from '../lib/images.ts';
import { mountsBelow } from '../lib/leaks.ts';
import { run } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

const NODE = join(REPOSITORY, 'node_modules/.bin/node');
const module = (path: string) => JSON.stringify(join(REPOSITORY, 'src', path));

test.serial(
  'a daemon that starts does not hang on a mount that a stopped process holds',
  async (t) => {
    const stage = await Stage.open(t);
    const image = await smallImage(stage.dir);
    await stage.serve();
    await stage.addImage(`rootfs:${image.tar}`, 'small:1');
    for (const rw of ['off', 'overlay']) {
      const dir = await stage.mount('small:1', ['--rw', rw, '--wait'], rw);
      await run('ls', ['-la', dir]);
      const mounts = await mountsBelow(stage.dir);
      const pid = await stage.daemonPid();
      const notes = join(stage.dir, `notes-${rw}`);
      process.kill(pid, 'SIGSTOP');
      try {
        // What a starting daemon does with its notes, in a process that may hang.
        const script = `
        const { Notes } = await import(${module('daemon/notes.ts')});
        const { makeLogger } = await import(${module('log/log.ts')});
        const snapshots = ${JSON.stringify(join(stage.root, 'snapshots'))};
        const notes = new Notes(${JSON.stringify(notes)}, snapshots, makeLogger('daemon'));
        await notes.add({ id: 'held', directory: ${JSON.stringify(dir)}, temporary: false });
        await notes.clearAll();`;
        const { code, stderr } = await run(NODE, ['--input-type=module', '-e', script], {
          timeoutMs: 60_000,
        });
        t.is(code, 0, stderr);
        t.regex(stderr, /neither ended nor answers/);
      } finally {
        process.kill(pid, 'SIGCONT');
      }
      t.deepEqual(await mountsBelow(stage.dir), mounts);
      // It is looked at again by the next one.
      t.deepEqual(await readdir(notes), ['held.json']);
      await stage.must(['umount', dir]);
    }
  },
);
