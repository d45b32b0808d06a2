// What a program has synced in a `--rw fuse` mount is there after a power cut: the store and the upper
// directory stand on a filesystem of their own, which is ended without its last writes. What a killed daemon
// leaves is in test/long.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { must, run, until } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';
import { Interpreter } from '../posix/interpreter.ts';
import { program } from '../posix/programs.ts';

const DISK_BYTES = 256 << 20;

let shared: string;
let tar: string;

test.before(async () => {
  shared = await mkdtemp(join(tmpdir(), 'firstlight-rw-powercut-'));
  ({ tar } = await smallImage(shared));
});
test.after.always(() => rm(shared, { recursive: true, force: true }));

/** A worker's root on an ext4 that commits nothing by itself: what ends it, and what gives it back as it was written. */
async function diskOf(
  stage: Stage,
): Promise<{ cut: () => Promise<void>; back: () => Promise<void> }> {
  const image = join(stage.dir, 'disk.img');
  await must('truncate', ['-s', String(DISK_BYTES), image]);
  await must('mkfs.ext4', ['-q', '-F', image]);
  await mkdir(stage.root);
  const attach = () => must('mount', ['-o', 'loop,commit=600', image, stage.root]);
  await attach();
  stage.onClose(async () => {
    await stage.run(['daemon', '--stop']);
    await must('umount', [stage.root]);
  });
  const cut = async () => {
    await must(await program('powercut'), [stage.root]);
    process.kill(await stage.daemonPid(), 'SIGKILL');
  };
  const back = async () => {
    await must('umount', ['-l', join(stage.dir, 'mnt')]);
    // What the dead daemon had open is let go a moment later.
    await until('the disk is free', async () => {
      return (await run('umount', [stage.root])).code === 0;
    });
    await attach();
  };
  return { cut, back };
}

/** What a program does before the cut, and what is to be seen after it. */
interface Case {
  steps: string[];
  /** sync(2) comes after them. */
  sync?: boolean;
  found: [command: string, answer: string][];
}

const CASES: Case[] = [
  {
    // In place: neither size nor blocks change, so fdatasync alone need not write more than the data.
    steps: ['open f small/file-001 w', 'write f =DATASYNC 0', 'sync f data'],
    found: [
      ['open f small/file-001 r', 'ok'],
      ['read f 8', 'ok =DATASYNC'],
    ],
  },
  {
    // No call syncs: the writes are to last by themselves.
    steps: ['open f small/file-010 w,dsync', 'write f =DSYNC 0'],
    found: [
      ['open f small/file-010 r', 'ok'],
      ['read f 5', 'ok =DSYNC'],
    ],
  },
  {
    // A descriptor of the image's content, under which another call promotes the file.
    steps: ['open f small/file-002 r', 'chmod @f 0600', 'sync f'],
    found: [['lstat small/file-002 mode', 'ok 0600']],
  },
  {
    steps: ['mkdir d', 'open f d/new w,creat', 'write f =new', 'sync f data'],
    found: [
      ['open f d/new r', 'ok'],
      ['read f 9', 'ok =new'],
    ],
  },
  {
    steps: ['put d/more w,creat =more', 'open d d r,dir', 'sync d'],
    found: [['lstat d/more type', 'ok file']],
  },
  {
    // Clause 10.9: nobody hears of it.
    steps: ['mkdir lost', 'open d . r,dir', 'sync d fs'],
    found: [['lstat lost', 'ENOENT']],
  },
  {
    steps: ['chmod small/file-003 0600', 'put other w,creat =other', 'rename small/file-004 moved'],
    sync: true,
    found: [
      ['lstat small/file-003 mode', 'ok 0600'],
      ['lstat other size', 'ok 5'],
      ['lstat small/file-004', 'ENOENT'],
      ['lstat moved type', 'ok file'],
    ],
  },
];

test.serial(
  '11.4 What was synced, by descriptor or with sync(2), survives a power cut, also where the first change of a file promoted it.',
  async (t) => {
    const stage = await Stage.open(t);
    const { cut, back } = await diskOf(stage);
    await stage.serve();
    await stage.addImage(`rootfs:${tar}`, 'small:1');
    const directory = await stage.mount('small:1', ['--rw', 'fuse', '--wait']);
    for (const { steps, sync = false, found } of CASES) {
      // Each cut for itself: one commit of the journal takes along whatever came before it.
      await must('sync', ['-f', stage.root]);
      const before = await Interpreter.start(directory);
      await before.must(steps);
      // Of every filesystem of the machine, whoever else writes there.
      if (sync) await must('sync', [], { timeoutMs: 240_000 });
      await cut();
      await before.close();
      await back();
      await stage.mount('small:1', ['--rw', 'fuse']);
      const after = await Interpreter.start(directory);
      const answers = await after.run(found.map(([command]) => command));
      await after.close();
      t.deepEqual(
        answers,
        found.map(([, answer]) => answer),
        steps.join('; '),
      );
    }
  },
);
