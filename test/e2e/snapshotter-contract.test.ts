// The trees that containerd sees through the snapshotter's mounts: what a child shows of its parents, and what a
// commit keeps. The service is called over gRPC and its mounts are made by mount(8), each in a mount namespace
// that ends with its script. Calls without mounts stand in src/snapshots/contract.test.ts.
import { join } from 'node:path';
import test from 'ava';
import { type Harness, snapshotter } from '../../src/snapshots/testkit.ts';
import type { Mount } from '../../src/snapshots/types.ts';
import { must } from '../lib/proc.ts';

/** Runs a script below the mounts, as containerd would mount them; what it printed. */
async function inside(h: Harness, mounts: Mount[], script: string): Promise<string> {
  const [mount] = mounts;
  if (mount === undefined || mounts.length > 1) throw new Error('one mount is expected');
  const base = join(h.root, 'containerd/snapshots');
  // containerd shortens the options of many layers in the same way: mount(2) takes one page of them.
  const options = mount.options.map((option) => option.replaceAll(`${base}/`, ''));
  const source = mount.type === 'bind' ? mount.source : mount.source;
  const how =
    mount.type === 'bind'
      ? `mount --rbind '${source}' "$1" && mount -o remount,bind,${options[0]} "$1"`
      : `mount -t ${mount.type} -o '${options.join(',')}' ${source} "$1"`;
  const command = `set -e; cd '${base}'; mkdir -p "$1"; ${how}; cd "$1"; ${script}`;
  const target = join(h.root, 'look');
  return must('unshare', ['--mount', 'sh', '-c', command, 'sh', target]);
}

/** Commits a layer that a script has written; what the script printed. */
async function layer(h: Harness, name: string, parent: string, script: string): Promise<string> {
  const mounts = await h.client.prepare(`${name}-key`, parent);
  const printed = await inside(h, mounts, script);
  await h.client.commit(name, `${name}-key`);
  return printed;
}

/** What a script sees in a view of a committed snapshot. */
async function look(h: Harness, name: string, script: string): Promise<string> {
  const key = `view-of-${name}-${Math.random()}`;
  const mounts = await h.client.view(key, name);
  try {
    return await inside(h, mounts, script);
  } finally {
    await h.client.remove(key);
  }
}

test.serial('a child shows its parents, and parents nothing of their child', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one', '', 'mkdir d; echo 1 >d/a; echo 1 >b');
  await layer(h, 'two', 'one', 'cat d/a; echo 2 >d/c; echo 2 >b');
  t.is(await look(h, 'one', 'find . -type f | sort | xargs grep .'), './b:1\n./d/a:1\n');
  t.is(await look(h, 'two', 'find . -type f | sort | xargs grep .'), './b:2\n./d/a:1\n./d/c:2\n');
});

test.serial('what a layer removes stays removed, and can come again', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one', '', 'mkdir -p d/sub e; touch d/a d/sub/b e/x f');
  await layer(h, 'two', 'one', 'rm -r d f; mkdir d; touch d/new');
  await layer(h, 'three', 'two', 'rm -r e; touch f e');
  t.is(await look(h, 'two', 'find . | sort'), '.\n./d\n./d/new\n./e\n./e/x\n');
  t.is(
    await look(h, 'three', 'find . | sort; stat -c %F e'),
    '.\n./d\n./d/new\n./e\n./f\nregular empty file\n',
  );
  t.is(
    await look(h, 'one', 'find . | sort'),
    '.\n./d\n./d/a\n./d/sub\n./d/sub/b\n./e\n./e/x\n./f\n',
  );
});

test.serial('files are moved over those of parents, and out of them', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one', '', 'mkdir a b; echo old >a/file; echo other >b/file; echo keep >b/keep');
  await layer(h, 'two', 'one', 'mv a/file b/file; mv b/keep a/kept');
  await layer(h, 'three', 'two', 'echo new >n; mv n a/kept; mkdir -p c; mv b c/b');
  t.is(
    await look(h, 'two', 'find . -type f | sort | xargs grep .'),
    './a/kept:keep\n./b/file:old\n',
  );
  t.is(
    await look(h, 'three', 'find . -type f | sort | xargs grep .'),
    './a/kept:new\n./c/b/file:old\n',
  );
});

test.serial('owners and permissions of files and directories are kept by a commit', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one', '', 'mkdir d; touch d/f g; chmod 0700 d; chown 1:2 g; chmod 4755 g');
  await layer(
    h,
    'two',
    'one',
    'chown 33:44 d/f; chmod 01777 d; chown 5:6 d; chmod 0711 .; chown 7:8 .',
  );
  await layer(h, 'three', 'two', 'touch later');
  const list = "stat -c '%n %a %u:%g' . d d/f g";
  t.is(await look(h, 'one', list), '. 755 0:0\nd 700 0:0\nd/f 644 0:0\ng 4755 1:2\n');
  const changed = '. 711 7:8\nd 1777 5:6\nd/f 644 33:44\ng 4755 1:2\n';
  t.is(await look(h, 'two', list), changed);
  t.is(await look(h, 'three', list), changed, 'a layer that says nothing of them changes nothing');
});

test.serial('views cannot be written', async (t) => {
  const h = await snapshotter(t);
  await layer(h, 'one', '', 'touch a');
  await layer(h, 'two', 'one', 'touch b');
  for (const name of ['one', 'two']) {
    const said = await look(h, name, 'touch x 2>&1 || true; rm a 2>&1 || true');
    t.is(said.match(/Read-only file system/g)?.length, 2, said);
  }
});

test.serial('128 layers can be mounted and written', async (t) => {
  const h = await snapshotter(t);
  let parent = '';
  for (let i = 0; i < 128; i++) {
    const mounts = await h.client.prepare(`k${i}`, parent);
    // One in sixteen is written through its mount, which takes longer.
    const upper = mounts[0]!.options.find((o) => o.startsWith('upperdir='))?.slice(9);
    if (i % 16 === 15) await inside(h, mounts, `echo ${i} >shared; touch f${i}; rm f${i - 1}`);
    else
      await must('sh', ['-c', `echo ${i} >shared; touch f${i}`], {
        cwd: upper ?? mounts[0]!.source,
      });
    parent = `l${i}`;
    await h.client.commit(parent, `k${i}`);
  }
  t.is(
    await look(h, parent, 'cat shared; ls | wc -l; ls f0 f127; ls f126 2>&1 | wc -l'),
    '127\n121\nf0\nf127\n1\n',
  );
  const mounts = await h.client.prepare('top', parent);
  t.is(
    await inside(h, mounts, 'echo top >shared; mv f0 f0.moved; ls | wc -l; cat shared'),
    '121\ntop\n',
  );
});
