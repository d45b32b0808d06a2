// Recording through the command line: what a trace of a real mount holds, on live mounts too, and
// what is left of it when the daemon is killed or the disk says no.
import { mkdir, open, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { canOpenAlone } from '../../src/fuse/opens.ts';
import { loadTrace, loadTraces } from '../../src/trace/files.ts';
import type { TraceItem, Tracer } from '../../src/trace/tracer.ts';
import { behindProxy, mountHeld, waits } from '../lib/arriving.ts';
import { busyboxImage } from '../lib/busybox-image.ts';
import { must, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

const MIB = 1 << 20;

async function small(
  t: ExecutionContext,
): Promise<{ stage: Stage; image: SmallImage; traces: string }> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve();
  await stage.addImage(`rootfs:${image.tar}`, 'small:1');
  return { stage, image, traces: join(stage.root, 'traces') };
}

/** The only trace of a root. */
async function theTrace(t: ExecutionContext, directory: string): Promise<Tracer> {
  const { traces, broken } = await loadTraces(directory);
  t.deepEqual(broken, []);
  t.is(traces.length, 1);
  return traces[0]!.tracer;
}

function item(tracer: Tracer, path: string): TraceItem {
  const found = tracer.seq.filter((i) => i.path === path);
  if (found.length !== 1) throw new Error(`${path} stands ${found.length} times in the trace`);
  return found[0]!;
}

/** Reads bytes of a file in a child process: the daemon must never wait for its own test. */
async function readAt(path: string, offset: number, bytes: number): Promise<void> {
  const block = 4096;
  const args = [`skip=${offset / block}`, `count=${bytes / block}`, `bs=${block}`];
  await must('dd', [`if=${path}`, 'of=/dev/null', 'status=none', ...args]);
}

for (const rw of ['off', 'overlay']) {
  test.serial(
    `mount --trace records order, waits, ranges, arrivals and digests (rw ${rw})`,
    async (t) => {
      const { stage, image, traces } = await small(t);
      const proxy = await behindProxy(stage);
      const dir = await mountHeld(stage, proxy, 'small:1', ['--rw', rw, '--trace', 'shop']);
      t.is((await stage.mountStatus(dir)).trace, 'shop');
      const first = readAt(join(dir, image.large), 8 * MIB, 65_536);
      await waits(stage, dir);
      proxy.flow();
      await first;
      await readAt(join(dir, image.large), 2 * MIB, 4096);
      const wanted = [image.small[70]!, image.medium, image.small[3]!];
      for (const path of wanted) await must('cat', [join(dir, path)]);
      await must('cat', [join(dir, image.small[70]!)]);
      await stage.must(['umount', dir]);

      const trace = await theTrace(t, traces);
      t.like(trace, { group: 'shop', image: 'small:1', platform: 'linux/amd64' });
      t.regex(trace.digest!, /^sha256:/);
      t.deepEqual(
        trace.seq.map(({ path }) => path),
        [image.large, ...wanted],
      );
      for (const seen of trace.seq) {
        // Of what had not arrived by the end, the digest is not known.
        const digest =
          seen.arrivedNs === undefined ? undefined : image.files.get(seen.path)!.sha256;
        t.is(seen.digest, digest, seen.path);
        t.is(seen.sizeBytes, image.files.get(seen.path)!.bytes);
        t.true(seen.accessNs < Number(trace.endNs - trace.startNs));
      }
      const { ranges } = item(trace, image.large);
      t.deepEqual(
        ranges!.map(({ offsetBytes }) => Math.floor(offsetBytes / MIB)),
        [8, 2],
      );
      t.true(ranges![0]!.waitNs > 1e6, 'its part was not there yet');
      const medium = item(trace, image.medium);
      // Its bytes were held until the first read waited.
      t.true(medium.arrivedNs! >= ranges![0]!.accessNs, JSON.stringify(medium));
      t.true(medium.arrivedNs! < Number(trace.endNs - trace.startNs));
      if (medium.waitNs > 0) {
        t.true(medium.arrivedNs! >= medium.accessNs, 'they came while it was waited for');
      }
      const received = trace.received!;
      t.true(received.length >= 2);
      t.true(received.at(-1)!.bytes >= 128 * 1024);
      t.is(trace.lost, undefined);
      t.deepEqual(
        await readdir(traces).then((names) => names.filter((n) => !n.endsWith('.json'))),
        [],
      );
      const listed = await stage.json<{ traces: { group: string; files: number }[] }>([
        'trace',
        'ls',
      ]);
      t.like(listed.traces[0], { group: 'shop', files: 4 });
    },
  );
}

test.serial(
  'who reads large files from start to end is believed to go on, and is not held up',
  async (t) => {
    const stage = await Stage.open(t);
    const tree = join(stage.dir, 'tree');
    await mkdir(tree);
    const names = ['a', 'b', 'c', 'd', 'e'];
    for (const name of names) await writeFile(join(tree, name), Buffer.alloc(2 * MIB + 5, name));
    const tar = join(stage.dir, 'large.tar');
    await must('tar', ['-C', tree, '-cf', tar, '.']);
    await stage.serve();
    await stage.addImage(`rootfs:${tar}`, 'large:1');
    const dir = await stage.mount('large:1', ['--rw', 'off', '--wait']);
    await stage.must(['trace', 'on', dir]);
    await must(
      'cat',
      ['a', 'b', 'c'].map((name) => join(dir, name)),
    );
    // Another process: nothing is known of it.
    await readAt(join(dir, 'd'), MIB, 4096);
    await must('dd', [`if=${join(dir, 'e')}`, 'of=/dev/null', 'bs=4096', 'count=1', 'status=none']);
    await stage.must(['trace', 'off', dir]);
    const trace = await theTrace(t, join(stage.root, 'traces'));
    const seen = (name: string) =>
      item(trace, name).ranges?.map(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes]);
    const whole = [
      [0, MIB],
      [MIB, MIB],
      [2 * MIB, 5],
    ];
    t.deepEqual(seen('a'), whole);
    t.deepEqual(seen('b'), whole);
    t.is(seen('c'), undefined, 'counts as read by its open');
    t.deepEqual(seen('d'), [[MIB, 65_536]]);
    t.deepEqual(seen('e'), [[0, 65_536]]);
  },
);

test.serial(
  'trace on and off on a live mount: a run each time, and ranges of files that are there',
  async (t) => {
    const { stage, image, traces } = await small(t);
    const dir = await stage.mount('small:1', ['--rw', 'off', '--opens', 'seen', '--wait']);
    await must('cat', [join(dir, image.small[0]!)]);
    const [on] = await stage.json<object[]>(['trace', 'on', dir, '--group', 'live']);
    t.like(on, { directory: dir, group: 'live', path: null });
    t.is((await stage.mountStatus(dir)).trace, 'live');
    await must('cat', [join(dir, image.small[0]!)]);
    await readAt(join(dir, image.large), 3 * MIB, 4096);
    const [off] = await stage.json<{ path: string }[]>(['trace', 'off']);
    t.is((await stage.mountStatus(dir)).trace, null);
    await must('cat', [join(dir, image.small[1]!)]);
    const first = await loadTrace(off!.path);
    t.is(first.group, 'live');
    t.deepEqual(
      first.seq.map(({ path }) => path),
      [image.small[0], image.large],
    );
    t.deepEqual(
      first.seq.map(({ waitNs, arrivedNs }) => [waitNs, arrivedNs]),
      [
        [0, 0],
        [0, 0],
      ],
    );
    t.deepEqual(
      item(first, image.large).ranges!.map((r) => [r.offsetBytes, r.lengthBytes]),
      [[3 * MIB, 65_536]],
    );
    // Another one, which ends with the mount.
    await stage.must(['trace', 'on', dir]);
    await must('cat', [join(dir, image.small[1]!)]);
    await stage.must(['umount', dir]);
    const { traces: all } = await loadTraces(traces);
    t.deepEqual(all.map(({ tracer }) => tracer.group).sort(), ['default', 'live']);

    const nothing = await stage.run(['trace', 'on', dir]);
    t.not(nothing.code, 0);
    t.regex(nothing.stderr, /not mounted by firstlight/);
  },
);

test.serial('a run that saw nothing leaves nothing; a bad group is refused', async (t) => {
  const { stage, traces } = await small(t);
  const dir = await stage.mount('small:1', ['--trace', 'idle', '--wait']);
  await stage.must(['umount', dir]);
  t.deepEqual(await readdir(traces), []);
  const bad = await stage.run(['mount', 'small:1', dir, '--trace', '../etc']);
  t.is(bad.code, 2, bad.stderr);
  t.regex(bad.stderr, /not a name for a trace group/);
  t.deepEqual((await stage.status()).mounts, []);
});

test.serial('a mount that cannot be recorded is not made, and says why', async (t) => {
  const { stage, traces } = await small(t);
  await stage.must(['ls']);
  await rm(traces, { recursive: true, force: true });
  await mkdir(stage.root, { recursive: true });
  await writeFile(traces, 'in the way');
  const dir = await stage.mountPoint();
  const ended = await stage.run(['mount', 'small:1', dir, '--trace', 'x']);
  t.not(ended.code, 0);
  t.regex(ended.stderr, /traces|EEXIST|ENOTDIR/);
  t.deepEqual((await stage.status()).mounts, []);
  await stage.must(['mount', 'small:1', dir]);
});

test.serial('kill -9 of the daemon: the next one saves what was in the journal', async (t) => {
  const { stage, image, traces } = await small(t);
  const dir = await stage.mount('small:1', ['--rw', 'off', '--trace', 'killed', '--wait']);
  for (const path of image.small.slice(0, 20)) await must('cat', [join(dir, path)]);
  await readAt(join(dir, image.large), 5 * MIB, 4096);
  const [journal] = await readdir(traces);
  const range = new RegExp(`"r":.*\\b${5 * MIB}\\b`);
  await until('the last of it is in the journal', async () =>
    range.test(await readFile(join(traces, journal!), 'utf8')),
  );
  const pid = await stage.daemonPid();
  process.kill(pid, 'SIGKILL');
  await until('the daemon has ended', async () => {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
    return stat === undefined || / Z /.test(stat);
  });
  t.deepEqual(
    (await readdir(traces)).filter((name) => name.endsWith('.json')),
    [],
  );
  await stage.must(['mount', 'small:1', dir, '--rw', 'off']);
  const trace = await theTrace(t, traces);
  t.true(trace.recovered);
  t.is(trace.group, 'killed');
  t.deepEqual(
    trace.seq.map(({ path }) => path),
    [...image.small.slice(0, 20), image.large],
  );
  t.is(item(trace, image.large).ranges![0]!.offsetBytes, 5 * MIB);
});

// Where the kernel does not open alone, opens are seen, and the tests of live mounts above are of that.
const testUnseen = canOpenAlone() ? test.serial : test.serial.skip;

testUnseen('kill -9 of the daemon while it watches the kernel open files', async (t) => {
  const { stage, image, traces } = await small(t);
  const dir = await stage.mount('small:1', ['--wait']);
  await must('cat', [join(dir, image.small[0]!)]);
  t.is((await stage.mountStatus(dir)).features?.opens, 'unseen');
  await stage.must(['trace', 'on', dir, '--group', 'killed']);
  for (const path of image.small.slice(0, 20)) await must('cat', [join(dir, path)]);
  const [journal] = await readdir(traces);
  await until('the last of them is in the journal', async () =>
    (await readFile(join(traces, journal!), 'utf8')).includes(image.small[19]!),
  );
  const pid = await stage.daemonPid();
  process.kill(pid, 'SIGKILL');
  await until('the daemon has ended', async () => {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
    return stat === undefined || / Z /.test(stat);
  });
  await stage.must(['mount', 'small:1', dir]);
  t.is((await stage.mountStatus(dir)).trace, null, 'it has ended with its daemon');
  const trace = await theTrace(t, traces);
  t.like(trace, { recovered: true, group: 'killed' });
  t.deepEqual(
    trace.seq.map(({ path }) => path),
    image.small.slice(0, 20),
  );
});

test.serial('a descriptor that outlives a detached mount does not hold its trace up', async (t) => {
  const { stage, image, traces } = await small(t);
  const dir = await stage.mount('small:1', ['--rw', 'off', '--trace', 'lazy', '--wait']);
  const holder = await open(join(dir, image.small[5]!), 'r');
  try {
    await stage.must(['umount', '--lazy', dir]);
    const trace = await theTrace(t, traces);
    t.deepEqual(
      trace.seq.map(({ path }) => path),
      [image.small[5]],
    );
  } finally {
    await holder.close();
  }
});

test.serial('run --trace records a container from its first file to its end', async (t) => {
  const stage = await Stage.open(t);
  await stage.serve();
  await stage.addImage(`rootfs:${await busyboxImage(stage.dir)}`, 'tiny:1');
  const script = 'cat /etc/passwd /etc/group > /tmp/copy; cat /tmp/copy > /dev/null; exit 3';
  const ended = await stage.run(['run', 'tiny:1', '--trace', 'box', '--', 'sh', '-c', script]);
  t.is(ended.code, 3, ended.stderr);
  const trace = await until('the trace is saved', async () => {
    const { traces } = await loadTraces(join(stage.root, 'traces'));
    return traces[0]?.tracer;
  });
  t.is(trace.group, 'box');
  const paths = trace.seq.map(({ path }) => path);
  t.true(paths.includes('bin/busybox'));
  t.true(paths.includes('etc/group'));
  t.false(paths.includes('tmp/copy'), 'what the container wrote is no content of the image');
  // A static busybox is larger than a part: the pages that ran are told, in order.
  const { ranges, sizeBytes } = item(trace, 'bin/busybox');
  if (sizeBytes! > MIB) t.is(ranges![0]!.offsetBytes, 0);
});

for (const rw of ['off', 'overlay']) {
  testUnseen(
    `trace on and off where the kernel opens files without asking (rw ${rw})`,
    async (t) => {
      const { stage, image, traces } = await small(t);
      const dir = await stage.mount('small:1', ['--rw', rw, '--wait']);
      const wanted = [image.small[9]!, image.medium, image.large, image.small[2]!];
      for (const path of wanted) await must('cat', [join(dir, path)]);
      t.is((await stage.mountStatus(dir)).features?.opens, 'unseen');
      const [on] = await stage.json<object[]>(['trace', 'on', dir, '--group', 'live']);
      t.like(on, { directory: dir, group: 'live', path: null });
      await must('cat', [join(dir, image.small[9]!)]);
      // All of it is in the kernel's cache, and asked for again.
      await readAt(join(dir, image.large), 5 * MIB, 4096);
      await must('cat', [join(dir, image.medium)]);
      await must('cat', [join(dir, image.small[9]!)]);
      await must('cat', [join(dir, image.small[2]!)]);
      const [off] = await stage.json<{ path: string }[]>(['trace', 'off', dir]);
      const trace = await loadTrace(off!.path);
      t.is(trace.group, 'live');
      t.is(trace.lost, undefined);
      t.deepEqual(
        trace.seq.map(({ path }) => path),
        [image.small[9], image.large, image.medium, image.small[2]],
      );
      for (const seen of trace.seq) {
        t.like(seen, { waitNs: 0, arrivedNs: 0, digest: image.files.get(seen.path)!.sha256 });
      }
      const ranges = item(trace, image.large).ranges!;
      // What the kernel reads ahead of a read in the middle is its affair.
      t.true(
        ranges.some((r) => r.offsetBytes <= 5 * MIB && 5 * MIB < r.offsetBytes + r.lengthBytes),
      );
      t.true(ranges.every((r) => r.offsetBytes >= 4 * MIB));

      // Nothing goes on behind it, and the next one begins anew and ends with its mount.
      await must('cat', [join(dir, image.small[50]!)]);
      await stage.must(['trace', 'on', dir, '--group', 'next']);
      await must('cat', [join(dir, image.small[2]!)]);
      await stage.must(['umount', dir]);
      const { traces: all } = await loadTraces(traces);
      const next = all.find(({ tracer }) => tracer.group === 'next')!.tracer;
      t.deepEqual(
        next.seq.map(({ path }) => path),
        [image.small[2]],
      );
    },
  );
}

testUnseen('a container that runs is traced from now on, and the trace orders', async (t) => {
  const stage = await Stage.open(t);
  await stage.serve();
  await stage.addImage(`rootfs:${await busyboxImage(stage.dir)}`, 'tiny:1');
  // The image is complete before the container begins: what it runs has no passthrough.
  await stage.mount('tiny:1', ['--rw', 'off', '--wait'], 'first');
  const script =
    'while [ ! -e /tmp/go ]; do sleep 0.1; done; cat /etc/passwd /etc/group > /tmp/copy; cat /tmp/copy';
  const container = stage.start(['run', 'tiny:1', '--', 'sh', '-c', script]);
  const dir = await until('the container opens files without us', async () => {
    const { mounts } = await stage.status();
    return mounts.find(({ rw, features }) => rw === 'overlay' && features?.opens === 'unseen')
      ?.directory;
  });
  await stage.must(['trace', 'on', dir, '--group', 'box']);
  await must('touch', [join(dir, 'tmp/go')]);
  t.is((await container.ended).code, 0, container.stderr);
  t.regex(container.stdout, /^root:x:0:0:.*logs:x:90:web$/ms);
  const trace = await until('the trace is saved', async () => {
    const { traces } = await loadTraces(join(stage.root, 'traces'));
    return traces[0]?.tracer;
  });
  t.is(trace.group, 'box');
  const paths = trace.seq.map(({ path }) => path);
  // Its loop starts busybox again and again.
  t.deepEqual(
    paths.filter((path) => path !== 'bin/busybox'),
    ['etc/passwd', 'etc/group'],
  );
  t.true(paths.includes('bin/busybox'));
});
