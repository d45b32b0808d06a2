// What a session records while tracing is on: first opens, first reads of large files, waits.
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { OPENS, TRACE_KIND, TRACE_RECORD_BYTES } from '../../src/native/index.ts';
import { Actor } from './actor.ts';
import { Fixture, noise, Tree, until } from './fixture.ts';

const LARGE = noise(3 * PART_BYTES + 1234, 11);
const BLOCK = 64 << 10;
const run = promisify(execFile);
const { Open, OpenSeen, Read } = TRACE_KIND;

function tree(): Tree {
  const made = new Tree();
  made.file('small', 'small content');
  made.file('other', 'other content');
  made.file('deep/large', LARGE);
  made.file('deep/second', noise(2 * PART_BYTES, 12));
  made.file('empty', '');
  return made;
}

interface Access {
  path: string;
  kind: number;
  atNs: number;
  waitNs: number;
  offset: number;
  length: number;
}

/** What was recorded since the last call, by time. */
async function take(fixture: Fixture, mount = 0): Promise<Access[]> {
  const answer = await fixture.send({ do: 'takeTrace', mount });
  const { records, lost } = answer as { records: string; lost: number };
  if (lost !== 0) throw new Error(`${lost} lost`);
  const bytes = Buffer.from(records, 'base64');
  const accesses: Access[] = [];
  for (let at = 0; at < bytes.length; at += TRACE_RECORD_BYTES) {
    accesses.push({
      path: fixture.toc.path(bytes.readUInt32LE(at + 28)),
      kind: bytes.readUInt32LE(at + 32),
      atNs: bytes.readDoubleLE(at),
      waitNs: bytes.readDoubleLE(at + 8),
      offset: bytes.readDoubleLE(at + 16),
      length: bytes.readUInt32LE(at + 24),
    });
  }
  return accesses.sort((x, y) => x.atNs - y.atNs);
}

const sinceNs = (startMs: number) => (performance.now() - startMs) * 1e6;

const short = (accesses: Access[]) => accesses.map(({ path, kind }) => `${kind} ${path}`);

/** Blocks of 64 KiB that reads of a file touched. */
function blocks(accesses: Access[], path: string): Set<number> {
  const seen = new Set<number>();
  for (const { kind, path: of, offset, length } of accesses) {
    if (kind !== Read || of !== path) continue;
    for (let at = offset - (offset % BLOCK); at < offset + length; at += BLOCK)
      seen.add(at / BLOCK);
  }
  return seen;
}

test('nothing is recorded unless tracing is on', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  await readFile(`${points[0]}/small`);
  t.deepEqual(await take(fixture), []);
  await fixture.send({ do: 'setTracing', mount: 0, on: true });
  await readFile(`${points[0]}/other`);
  await fixture.send({ do: 'setTracing', mount: 0, on: false });
  await readFile(`${points[0]}/small`);
  t.deepEqual(short(await take(fixture)), [`${Open} other`]);
});

test('each file is recorded once for each time that tracing is turned on', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const began = performance.now();
  const { points } = await fixture.mount({ ready: true, tracing: true });
  for (const name of ['other', 'small', 'other', 'empty', 'small']) {
    await readFile(`${points[0]}/${name}`);
  }
  const first = await take(fixture);
  t.deepEqual(short(first), [`${Open} other`, `${Open} small`, `${Open} empty`]);
  t.true(first.every(({ waitNs, atNs }) => waitNs === 0 && atNs > 0 && atNs < sinceNs(began)));
  await readFile(`${points[0]}/small`);
  t.deepEqual(await take(fixture), []);
  await fixture.send({ do: 'setTracing', mount: 0, on: true });
  await readFile(`${points[0]}/small`);
  t.deepEqual(short(await take(fixture)), [`${Open} small`]);
});

for (const passthrough of [true, false]) {
  const how = passthrough ? 'passthrough' : 'no passthrough';

  test(`reads of a complete large file are seen until all of it was read (${how})`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    await fixture.storeAll();
    const { points } = await fixture.mount({ ready: true, tracing: true, passthrough });
    const path = `${points[0]}/deep/large`;
    const actor = await Actor.start(fixture);
    const fd = await actor.open(path);
    t.deepEqual(await actor.pread(fd, 2 * PART_BYTES + 5, 50), LARGE.subarray(2097157, 2097207));
    const some = await take(fixture);
    t.is(short(some)[0], `${OpenSeen} deep/large`);
    const touched = blocks(some, 'deep/large');
    t.true(touched.has(32));
    if (passthrough) t.deepEqual([...touched], [32], 'exactly what was read');
    t.is(await actor.ask(`close ${fd}`), 'ok');
    t.true(LARGE.equals(await readFile(path)));
    const rest = blocks(await take(fixture), 'deep/large');
    t.is(new Set([...touched, ...rest]).size, 49);
    // From then on it is read as without a trace.
    const { passthroughOpens } = await fixture.stats();
    t.true(LARGE.equals(await readFile(path)));
    t.deepEqual(await take(fixture), []);
    t.is((await fixture.stats()).passthroughOpens, passthroughOpens + (passthrough ? 1 : 0));
  });
}

test('a large file that has passthrough when tracing begins keeps it, and says so', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points, features } = await fixture.mount({ ready: true });
  if (!features[0]!.passthrough) return t.pass('this kernel has no passthrough');
  const actor = await Actor.start(fixture);
  await actor.open(`${points[0]}/deep/large`);
  await fixture.send({ do: 'setTracing', mount: 0, on: true });
  t.true(LARGE.equals(await readFile(`${points[0]}/deep/large`)));
  t.deepEqual(short(await take(fixture)), [`${Open} deep/large`]);
});

test('waits are recorded from the request to its answer', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ tracing: true });
  const actor = await Actor.start(fixture);
  const told = performance.now();
  actor.tell(`open ${points[0]}/small`);
  await fixture.untilWaiting(1);
  t.true(await actor.silentFor(150));
  t.deepEqual(await take(fixture), [], 'told when it is over');
  await fixture.arrive('small');
  t.regex(await actor.answer(), /^fd /);
  const [open] = await take(fixture);
  t.is(open!.path, 'small');
  t.true(open!.waitNs >= 140e6 && open!.waitNs <= sinceNs(told), String(open!.waitNs));
  // A large file opens at once, and its reads wait.
  const fd = await actor.open(`${points[0]}/deep/large`);
  actor.tell(`pread ${fd} ${PART_BYTES} 100`);
  await fixture.untilWaiting(1);
  t.true(await actor.silentFor(150));
  await fixture.arriveParts('deep/large', [1]);
  t.is(
    await actor.answer(),
    `bytes ${LARGE.subarray(PART_BYTES, PART_BYTES + 100).toString('hex')}`,
  );
  const large = await take(fixture);
  t.deepEqual(short(large), [`${OpenSeen} deep/large`, `${Read} deep/large`]);
  t.is(large[0]!.waitNs, 0);
  t.true(large[1]!.waitNs >= 140e6);
  t.is(large[1]!.offset, PART_BYTES);
  t.is(large[1]!.length, 100);
});

test('what was wanted and did not come in time is recorded, too', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ tracing: true, waitTimeoutMs: 2000 });
  await t.throwsAsync(readFile(`${points[0]}/small`), { code: 'EIO' });
  const seen = await take(fixture);
  t.deepEqual(short(seen), [`${Open} small`]);
  t.true(seen[0]!.waitNs >= 1900e6);
});

test('what was wanted until the end is recorded, and can be taken after it', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ tracing: true });
  const reader = fixture.start('cat', `${points[0]}/other`);
  await fixture.untilWaiting(1);
  await fixture.send({ do: 'unmount', mount: 0, detach: true });
  t.is((await reader.end).code, 1);
  await fixture.send({ do: 'abort', mount: 0 });
  t.deepEqual(short(await take(fixture)), [`${Open} other`]);
});

test('each mount of an image records for itself', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, count: 2, tracing: true });
  await readFile(`${points[0]}/small`);
  await readFile(`${points[1]}/other`);
  t.deepEqual(short(await take(fixture, 0)), [`${Open} small`]);
  t.deepEqual(short(await take(fixture, 1)), [`${Open} other`]);
});

test('many readers at once: every file once, nothing lost', async (t) => {
  const made = new Tree();
  for (let i = 0; i < 3000; i++) made.file(`d${i % 7}/f${i}`, `content ${i}`);
  made.file('large', LARGE);
  const fixture = await Fixture.make(t, made);
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, tracing: true, threads: 4 });
  const walk = () =>
    run('sh', ['-c', 'find . -type f -exec cat {} + | sha256sum'], {
      cwd: points[0]!,
    });
  const sums = await Promise.all([walk(), walk(), walk()]);
  t.is(new Set(sums.map(({ stdout }) => stdout)).size, 1);
  const seen = await take(fixture);
  const opens = seen.filter(({ kind }) => kind !== Read);
  t.is(opens.length, 3001);
  t.is(new Set(opens.map(({ path }) => path)).size, 3001);
  t.is(blocks(seen, 'large').size, 49);
});

/** user::rwx group::r-x other::r-x (version 2; tag, permissions, id). */
const ACL = Buffer.from(
  '02000000 01000700ffffffff 04000500ffffffff 20000500ffffffff'.replaceAll(' ', ''),
  'hex',
);

/** A mount whose files the kernel opens alone, and has cached; directly, or below overlayfs. */
async function unseen(
  t: ExecutionContext,
  below: 'no overlay' | 'overlayfs',
  acls = false,
): Promise<{ fixture: Fixture; root: string }> {
  const image = tree();
  if (acls) {
    const xattrs = new Map([['system.posix_acl_access', ACL]]);
    image.add('', 'shared', { type: 'dir', mode: 0o755, xattrs });
  }
  const fixture = await Fixture.make(t, image);
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, opens: OPENS.Unseen });
  let root = points[0]!;
  if (below === 'overlayfs') {
    for (const sub of ['upper', 'work', 'merged']) await mkdir(join(fixture.dir, sub));
    const layers = `lowerdir=${root},upperdir=${fixture.dir}/upper,workdir=${fixture.dir}/work`;
    root = join(fixture.dir, 'merged');
    await run('mount', ['-t', 'overlay', 'overlay', '-o', layers, root]);
  }
  for (const name of ['small', 'other', 'deep/large', 'deep/second', 'empty']) {
    await readFile(`${root}/${name}`);
  }
  t.true((await fixture.stats()).opensUnseen);
  return { fixture, root };
}

async function watch(fixture: Fixture): Promise<void> {
  await fixture.send({ do: 'watchOpens', mount: 0 });
  await fixture.send({ do: 'setTracing', mount: 0, on: true });
  await fixture.send({ do: 'forgetReads', mount: 0 });
}

// With ACLs the root that is mounted is another directory of the filesystem (native/root_below.h).
for (const [below, acls] of [
  ['no overlay', false],
  ['overlayfs', false],
  ['no overlay', true],
  ['overlayfs', true],
] as const) {
  const where = `${below}, ${acls ? 'ACLs' : 'no ACLs'}`;
  test(`opens that the kernel makes alone are recorded in order (${where})`, async (t) => {
    const began = performance.now();
    const { fixture, root } = await unseen(t, below, acls);
    const { opens } = await fixture.stats();
    await watch(fixture);
    const actor = await Actor.start(fixture);
    for (const name of ['other', 'empty', 'other', 'small']) await readFile(`${root}/${name}`);
    const fd = await actor.open(`${root}/deep/large`);
    t.deepEqual(await actor.pread(fd, 2 * PART_BYTES + 5, 50), LARGE.subarray(2097157, 2097207));
    await run('ls', ['-lR', root]);
    await fixture.send({ do: 'unwatchOpens', mount: 0 });
    const seen = await take(fixture);
    t.deepEqual(short(seen.filter(({ kind }) => kind !== Read)), [
      `${OpenSeen} other`,
      `${OpenSeen} empty`,
      `${OpenSeen} small`,
      `${OpenSeen} deep/large`,
    ]);
    t.true(seen.every(({ waitNs, atNs }) => waitNs === 0 && atNs > 0 && atNs < sinceNs(began)));
    // It was in the page cache before. What is asked for now is read ahead, and not from the start on.
    const touched = blocks(seen, 'deep/large');
    t.true(touched.has(32));
    t.false(touched.has(0));
    t.is((await fixture.stats()).opens, opens, 'none came to the session');
    // Neither is watched any more.
    await readFile(`${root}/deep/second`);
    t.deepEqual(short((await take(fixture)).filter(({ kind }) => kind !== Read)), []);
  });
}

test('what maps its file is recorded, and what is opened by another way into the mount', async (t) => {
  const { fixture, root } = await unseen(t, 'no overlay');
  const bound = join(fixture.dir, 'bound');
  await mkdir(bound);
  await watch(fixture);
  const script = `mount --bind ${root}/deep ${bound} && cat ${bound}/second > /dev/null`;
  await run('unshare', ['-m', 'sh', '-c', script]);
  const actor = await Actor.start(fixture);
  const fd = await actor.open(`${root}/deep/large`);
  t.is(await actor.ask(`map private ${fd} ${LARGE.length}`), 'map 0');
  t.is(await actor.ask(`peek 0 ${PART_BYTES + 99}`), `byte ${LARGE[PART_BYTES + 99]}`);
  await fixture.send({ do: 'unwatchOpens', mount: 0 });
  const seen = await take(fixture);
  t.deepEqual(short(seen.filter(({ kind }) => kind !== Read)), [
    `${OpenSeen} deep/second`,
    `${OpenSeen} deep/large`,
  ]);
  t.is(blocks(seen, 'deep/second').size, 32);
  t.true(blocks(seen, 'deep/large').has(16));
});

test('opens that could not be looked at, for want of descriptors, are counted as lost', async (t) => {
  const { fixture, root } = await unseen(t, 'no overlay');
  await watch(fixture);
  const actor = await Actor.start(fixture);
  // What the kernel has forgotten of them it asks now.
  await run('ls', ['-lR', root]);
  const pid = fixture.child.pid!;
  const fds = (await readdir(`/proc/${pid}/fd`)).map(Number);
  let limit = 0;
  for (let left = 2; left > 0; limit++) if (!fds.includes(limit)) left--;
  // All of them are there when it looks.
  process.kill(pid, 'SIGSTOP');
  await run('prlimit', ['--pid', `${pid}`, `--nofile=${limit}:`]);
  const names = ['small', 'other', 'deep/large', 'deep/second', 'empty'];
  for (const name of names) await actor.open(`${root}/${name}`);
  process.kill(pid, 'SIGCONT');
  await fixture.send({ do: 'unwatchOpens', mount: 0 });
  const { records, lost } = (await fixture.send({ do: 'takeTrace', mount: 0 })) as {
    records: string;
    lost: number;
  };
  const seen = Buffer.from(records, 'base64').length / TRACE_RECORD_BYTES;
  t.is(seen + lost, names.length);
});

// Else the thread that takes the events sends it, and who kills the daemon at that moment leaves it waiting for the
// daemon's own answer: the mount would never be dead.
test('when a watch has begun, closes are no requests any more', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, opens: OPENS.Unseen });
  const actor = await Actor.start(fixture);
  const fd = await actor.open(`${points[0]}/small`);
  t.true((await fixture.stats()).opensUnseen);
  await watch(fixture);
  t.deepEqual(await take(fixture), []);
  const pid = fixture.child.pid!;
  process.kill(pid, 'SIGSTOP');
  try {
    t.is(await actor.ask(`close ${fd}`), 'ok');
  } finally {
    process.kill(pid, 'SIGCONT');
  }
});

test('a mount that is watched is unmounted, and what was opened is recorded', async (t) => {
  const { fixture, root } = await unseen(t, 'no overlay');
  await watch(fixture);
  await t.throwsAsync(fixture.send({ do: 'watchOpens', mount: 0 }), { code: 'EALREADY' });
  const holder = await Actor.start(fixture);
  const fd = await holder.open(`${root}/other`);
  await t.throwsAsync(fixture.send({ do: 'unmount', mount: 0, detach: false }), { code: 'EBUSY' });
  await readFile(`${root}/small`);
  t.is(await holder.ask(`close ${fd}`), 'ok');
  await fixture.send({ do: 'unmount', mount: 0, detach: false });
  t.deepEqual(short(await take(fixture)), [`${OpenSeen} other`, `${OpenSeen} small`]);
  await fixture.send({ do: 'unwatchOpens', mount: 0 });
  await t.throwsAsync(fixture.send({ do: 'watchOpens', mount: 0 }), { code: 'EINVAL' });
});

test('a watch ends with a session that is ended by force, and cannot begin where nothing is mounted', async (t) => {
  const { fixture, root } = await unseen(t, 'no overlay');
  await watch(fixture);
  const actor = await Actor.start(fixture);
  await actor.open(`${root}/small`);
  await fixture.send({ do: 'unmount', mount: 0, detach: true });
  await fixture.send({ do: 'unwatchOpens', mount: 0 });
  await t.throwsAsync(fixture.send({ do: 'watchOpens', mount: 0 }), { code: 'ENODEV' });
  await fixture.send({ do: 'abort', mount: 0 });
  t.deepEqual(short(await take(fixture)), [`${OpenSeen} small`]);

  const other = await unseen(t, 'no overlay');
  await watch(other.fixture);
  await other.fixture.send({ do: 'abort', mount: 0 });
  await until('it has closed', async () => {
    const events = (await other.fixture.send({ do: 'events' })) as { event: string }[];
    return events.some(({ event }) => event === 'closed');
  });
});
