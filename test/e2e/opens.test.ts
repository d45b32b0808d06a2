// Opens that the kernel makes alone, through the command line: when they begin to, what says so, and what
// can be recorded then. The session alone is under test in test/native, the policy in src/tree.
import { chmod, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { canOpenAlone } from '../../src/fuse/opens.ts';
import { loadTrace, loadTraces } from '../../src/trace/files.ts';
import { arriveUntil, behindProxy, MissedError, mountHeld, untilMet } from '../lib/arriving.ts';
import { Background, must, run, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { world } from '../lib/snapshotter.ts';
import { Stage } from '../lib/stage.ts';

// Elsewhere all opens are seen, whatever is asked for.
const testHere = canOpenAlone() ? test.serial : test.serial.skip;

async function small(t: ExecutionContext): Promise<{ stage: Stage; image: SmallImage }> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  return { stage, image };
}

/** Every file of the image as a child process reads it. */
async function readsRight(t: ExecutionContext, dir: string, image: SmallImage): Promise<void> {
  const sums = await must('sh', ['-c', `cd ${dir} && find . -type f -exec sha256sum {} +`]);
  const seen = sums.split('\n').flatMap((line) => (line === '' ? [] : [line.split('  ./')]));
  const got = seen.map(([sum, path]) => `${path} ${sum}`).sort();
  t.deepEqual(got, [...image.files].map(([path, { sha256 }]) => `${path} ${sha256}`).sort());
}

for (const rw of ['off', 'overlay']) {
  testHere(`a complete image: one open comes, and is the last (rw ${rw})`, async (t) => {
    const { stage, image } = await small(t);
    const dir = await stage.mount('small:1', ['--rw', rw, '--wait']);
    t.is((await stage.mountStatus(dir)).features?.opens, 'seen');
    await readsRight(t, dir, image);
    const { features, stats } = await stage.mountStatus(dir);
    t.is(features?.opens, 'unseen');
    t.is(stats?.opens, 1);
    t.regex(await stage.must(['status', dir]), /1 opens \(0 passthrough\), unseen now/);
    await readsRight(t, dir, image);
    t.is((await stage.mountStatus(dir)).stats?.opens, 1);

    await stage.must(['umount', dir]);
    t.deepEqual(await readdir(join(stage.root, 'traces')), []);
  });
}

testHere('what runs since before the last byte came does not keep opens seen', async (t) => {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const root = join(stage.dir, 'small-root');
  await must('install', ['-D', '/bin/busybox', join(root, 'bin/busybox')]);
  const tar = join(stage.dir, 'both.tar');
  await must('tar', ['-C', root, '--sort=name', '-cf', tar, '.']);
  // The rate bounds what is under way at a time; how much comes is what the proxy lets through.
  await stage.serve({ rate: '40mbit' });
  await stage.addImage(`rootfs:${tar}`, 'both:1');
  const proxy = await behindProxy(stage);
  const dir = await stage.mountPoint();
  const program = await untilMet(t, async () => {
    await mountHeld(stage, proxy, 'both:1', ['--rw', 'off']);
    // Not by this process, which would wait for the program's bytes that it is to let through.
    const args = ['-c', 'exec "$0" cat', join(dir, 'bin/busybox')];
    const started = new Background('sh', args, { keepInput: true });
    started.child.stdin!.write('it runs\n');
    await arriveUntil(stage, proxy, 'it runs', () => started.stdout === 'it runs\n');
    const { state } = (await stage.mountStatus(dir)).transfer;
    if (state !== 'complete') return started;
    started.child.stdin!.end();
    await started.ended;
    await stage.must(['umount', dir]);
    await stage.must(['gc', '--all']);
    throw new MissedError('all had arrived when it ran');
  });
  stage.onClose(async () => {
    program.child.stdin!.end();
    await program.ended;
  });
  proxy.flow();
  await until(
    'the image is complete',
    async () => (await stage.mountStatus(dir)).transfer.state === 'complete',
  );
  await must('cat', [join(dir, image.small[3]!)]);
  t.true(program.running);
  t.is((await stage.mountStatus(dir)).features?.opens, 'unseen');
});

testHere(
  'while a trace is recorded opens are seen; after it they are not, and the next one watches them',
  async (t) => {
    const { stage, image } = await small(t);
    const dir = await stage.mount('small:1', ['--trace', 'shop', '--wait']);
    await readsRight(t, dir, image);
    const traced = await stage.mountStatus(dir);
    t.is(traced.features?.opens, 'seen');
    t.true(traced.stats!.passthroughOpens > 0);
    // Straight into the next one: all of its opens are there.
    const [other] = await stage.json<{ path: string }[]>(['trace', 'on', dir, '--group', 'other']);
    t.truthy(other?.path);
    await must('cat', [join(dir, image.small[7]!)]);
    await stage.must(['trace', 'off', dir]);
    const { traces } = await loadTraces(join(stage.root, 'traces'));
    t.deepEqual(traces.map(({ tracer }) => [tracer.group, tracer.seq.length]).sort(), [
      ['other', 1],
      ['shop', image.files.size],
    ]);
    await until('unseen opens', async () => {
      await must('cat', [join(dir, image.small[1]!)]);
      return (await stage.mountStatus(dir)).features?.opens === 'unseen';
    });
    await stage.must(['trace', 'on', dir, '--group', 'late']);
    await readsRight(t, dir, image);
    t.is((await stage.mountStatus(dir)).features?.opens, 'unseen');
    const [late] = await stage.json<{ path: string }[]>(['trace', 'off', dir]);
    t.is((await loadTrace(late!.path)).seq.length, image.files.size);
  },
);

test.serial('with --opens seen nothing changes: passthrough, and traces at any time', async (t) => {
  const { stage, image } = await small(t);
  const dir = await stage.mount('small:1', ['--opens', 'seen', '--wait']);
  await readsRight(t, dir, image);
  const { features, stats } = await stage.mountStatus(dir);
  t.is(features?.opens, 'seen');
  t.is(stats?.passthroughOpens, image.files.size);
  await stage.must(['trace', 'on', dir]);
  const wrong = await stage.run(['mount', 'small:1', dir, '--opens', 'never']);
  t.is(wrong.code, 2, wrong.stderr);
});

testHere('a content that turns out to be damaged is fetched again, and read anew', async (t) => {
  const { stage, image } = await small(t);
  const dir = await stage.mount('small:1', ['--rw', 'off', '--wait']);
  const path = image.small[5]!;
  const { sha256 } = image.files.get(path)!;
  const content = join(stage.root, 'content', sha256.slice(0, 2), sha256.slice(2));
  const bytes = await readFile(content);
  bytes.fill('!', 100, 200);
  await chmod(content, 0o644);
  await writeFile(content, bytes);
  const sum = async () => {
    const { stdout } = await run('sha256sum', [join(dir, path)]);
    return stdout.toString('utf8').split(' ')[0];
  };
  t.not(await sum(), sha256, 'the damage is seen before it is known');
  t.is((await stage.mountStatus(dir)).features?.opens, 'unseen');
  t.is((await stage.run(['verify'])).code === 0, false);
  // What is asked for is fetched; until then there is an error, and never again the damaged bytes.
  await until('the right bytes', async () => (await sum()) === sha256);
});

testHere('containers of a complete image open files without us', async (t) => {
  const { stage, registry, containerd, metric } = await world(t);
  const image = `${registry}/app:v1`;
  await containerd.pull(image);
  await containerd.start(image, 'early');
  await until('the image is complete', async () => {
    const { images } = await stage.json<{ images: { complete: boolean }[] }>(['ls']);
    return images.length === 1 && images[0]!.complete;
  });
  const version = () => containerd.exec('early', ['cat', '/app/version']);
  t.is(await version(), 'one\n');
  // The keeper tells its counters a few times a second, all at once: when the reads of a file that nobody has
  // read before are among them, so are all opens up to then.
  const opensUpTo = async (fresh: string): Promise<number> => {
    const before = await metric('firstlight_reads_total');
    await containerd.exec('early', ['sh', '-c', `cat ${fresh} >/dev/null`]);
    await until('its reads', async () => (await metric('firstlight_reads_total')) > before);
    return metric('firstlight_opens_total');
  };
  // What is told may lag behind by a piece of news or two: each reads of another file, the last of which counts.
  await opensUpTo('/app/part');
  await opensUpTo('/app/same');
  const first = await opensUpTo('/data/base');
  t.true(first > 0);
  for (let i = 0; i < 3; i++) t.is(await version(), 'one\n');
  t.is(await containerd.run(image, 'late', ['cat', '/app/version']), 'one\n');
  t.is(await opensUpTo('/usr/lib/library'), first, 'no open has come');
  await containerd.remove('early');
});
