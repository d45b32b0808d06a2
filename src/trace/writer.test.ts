// Recording, its journal, and what is left of a recorder that died at any moment.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { promisify } from 'node:util';
import test from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { loadTrace, loadTraces, saveTrace } from './files.ts';
import { formatTracer } from './format.ts';
import { parseTracer } from './parse.ts';
import { parseJournal, recoverJournals } from './recover.ts';
import type { TracerHead } from './tracer.ts';
import { TraceWriter } from './writer.ts';

const MIB = 1 << 20;
const head: TracerHead = {
  group: 'web',
  image: 'registry.example:5000/team/app:1.2',
  digest: `sha256:${'a'.repeat(64)}`,
  platform: 'linux/amd64',
  startNs: 1_700_000_000_123_456_789n,
};
const end = head.startNs + 5_000_000_000n;

async function directoryFor(t: { teardown(f: () => unknown): void }): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-trace-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

const open = (path: string, accessNs: number, waitNs = 0) => ({ path, layer: 0, accessNs, waitNs });
const read = (offsetBytes: number, lengthBytes: number, accessNs: number, waitNs = 0) => ({
  offsetBytes,
  lengthBytes,
  accessNs,
  waitNs,
});

test('a finished run is one JSON object with the known keys, and no journal is left', async (t) => {
  const directory = await directoryFor(t);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened({
    ...open('usr/bin/app', 1000, 50),
    layer: 2,
    sizeBytes: 12,
    digest: 'b'.repeat(64),
  });
  writer.opened(open('caf\xe9', 2000));
  writer.opened(open(Buffer.from('é€😀').toString('latin1'), 3000));
  writer.opened(open('usr/bin/app', 4000));
  writer.arrived('usr/bin/app', 900);
  writer.received({ atNs: 10, bytes: 5 });
  writer.received({ atNs: 20, bytes: 5 });
  writer.addLost(3);
  const path = await writer.finish(end);
  t.deepEqual(await readdir(directory), [`${writer.id}.json`]);
  t.deepEqual(JSON.parse(await readFile(path!, 'utf8')), {
    version: 1,
    group: 'web',
    image: head.image,
    digest: head.digest,
    platform: 'linux/amd64',
    start: '2023-11-14T22:13:20.123456789Z',
    end: '2023-11-14T22:13:25.123456789Z',
    lost: 3,
    recv: [[10, 5]],
    seq: [
      { f: 'usr/bin/app', s: 2, a: 1000, w: 50, z: 12, d: 'b'.repeat(64), v: 900 },
      {
        f: 'caf\ufffd',
        s: 0,
        a: 2000,
        w: 0,
        b: Buffer.from('caf\xe9', 'latin1').toString('base64'),
      },
      { f: 'é€😀', s: 0, a: 3000, w: 0 },
    ],
  });
  const { traces, broken } = await loadTraces(directory);
  t.deepEqual(broken, []);
  t.deepEqual(traces[0]!.tracer, writer.snapshot(end));
});

test('sights may be told out of order; the earliest counts', async (t) => {
  const writer = await TraceWriter.create({ directory: await directoryFor(t), head });
  writer.opened(open('b', 20));
  writer.read('big', read(0, 10, 15));
  writer.opened(open('a', 10));
  writer.opened({ ...open('b', 5, 7), sizeBytes: 3 });
  writer.opened({ ...open('big', 12), sizeBytes: 3 * MIB });
  const { seq } = writer.snapshot(end);
  t.deepEqual(
    seq.map(({ path, accessNs, waitNs }) => [path, accessNs, waitNs]),
    [
      ['b', 5, 7],
      ['a', 10, 0],
      ['big', 12, 0],
    ],
  );
  t.is(seq[2]!.ranges!.length, 1);
  await writer.discard();
});

test('ranges: first touches by blocks, a range for each part, cut at the end of the file', async (t) => {
  const directory = await directoryFor(t);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened({ ...open('big', 0), sizeBytes: 2 * MIB + 100 });
  for (let at = 0; at < 2 * MIB + 100; at += 131072) writer.read('big', read(at, 131072, at, 1));
  writer.read('big', read(5, 70000, 9e6));
  writer.opened({ ...open('other', 1), sizeBytes: 9 * MIB });
  writer.read('other', read(8 * MIB + 10, 10, 50, 5));
  writer.read('other', read(4096, 4096, 60));
  writer.read('other', read(10 * MIB, 4096, 70));
  writer.read('unknown', read(2 ** 45, 4096, 80));
  writer.opened({ ...open('unread', 2), sizeBytes: 9 * MIB });
  writer.seesReads('unread');
  writer.seesReads('big');
  const tracer = (await loadTraces(directory)) && (await loadTrace((await writer.finish(end))!));
  const [big, other, unread, unknown] = tracer.seq;
  t.deepEqual(
    big!.ranges!.map(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes]),
    [
      [0, MIB],
      [MIB, MIB],
      [2 * MIB, 100],
    ],
  );
  t.deepEqual(other!.ranges, [read(8 * MIB, 65536, 50, 5), read(0, 65536, 60)]);
  t.is(tracer.lost, 2);
  t.deepEqual(unknown!.ranges, []);
  t.deepEqual(unread!.ranges, []);
});

test('a digest that is known only with the last part is in the trace and in the journal', async (t) => {
  const directory = await directoryFor(t);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened({ ...open('big', 5), sizeBytes: 3 * MIB });
  writer.arrived('big', 70, 'c'.repeat(64));
  writer.opened({ ...open('small', 6), digest: 'd'.repeat(64) });
  writer.arrived('small', 80, 'e'.repeat(64));
  await writer.flush();
  const journal = parseJournal(await readFile(join(directory, `${writer.id}.part`)), 'journal');
  for (const { seq } of [journal, await loadTrace((await writer.finish(end))!)]) {
    t.deepEqual(
      seq.map(({ digest, arrivedNs }) => [digest, arrivedNs]),
      [
        ['c'.repeat(64), 70],
        ['d'.repeat(64), 80],
      ],
    );
  }
});

test('a run that saw nothing leaves nothing, a discarded one neither', async (t) => {
  const directory = await directoryFor(t);
  t.is(await (await TraceWriter.create({ directory, head })).finish(end), undefined);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened(open('a', 1));
  await writer.flush();
  await writer.discard();
  t.deepEqual(await readdir(directory), []);
});

test('names and times that no trace can hold are counted as lost', async (t) => {
  const writer = await TraceWriter.create({ directory: await directoryFor(t), head });
  for (const path of ['', '/etc', 'a/../b', 'a//b', 'a\0b', 'x'.repeat(256)])
    writer.opened(open(path, 1));
  for (const ns of [-1, Number.NaN, 0.5, 2 ** 60]) writer.opened(open('a', ns));
  writer.read('b', read(0, 1, Number.NaN));
  t.is(writer.items, 0);
  t.is(writer.lost, 11);
  await writer.discard();
});

test('a recorder that is killed loses no more than half a second', async (t) => {
  const script = `
    const { TraceWriter } = await import(${JSON.stringify(new URL('./writer.ts', import.meta.url).href)});
    const writer = await TraceWriter.create({ directory: process.argv[1],
      head: { group: 'default', image: 'app:1', startNs: 5n } });
    const t0 = performance.now();
    setInterval(() => {
      const at = Math.round(performance.now() - t0);
      writer.opened({ path: 'f' + at, layer: 0, accessNs: at * 1e6, waitNs: 0 });
      process.stdout.write(at + '\\n');
    }, 5);`;
  // Its write may have waited for a busy machine's processor or disk: not every time.
  let lostMs = Number.POSITIVE_INFINITY;
  for (let tries = 0; tries < 10 && lostMs >= 500; tries++) {
    const directory = await directoryFor(t);
    const child = spawn(process.execPath, ['--input-type=module', '-e', script, directory]);
    t.teardown(() => child.kill('SIGKILL'));
    let told = '';
    child.stdout.on('data', (data) => {
      told += data;
      if (Number(told.trim().split('\n').at(-1)) > 1200) child.kill('SIGKILL');
    });
    await once(child, 'close');
    const last = Number(told.trim().split('\n').at(-1));
    const { traces, broken } = await recoverJournals(directory);
    t.deepEqual(broken, []);
    const { seq, recovered } = await loadTrace(traces[0]!);
    t.true(recovered);
    t.deepEqual(await readdir(directory), [traces[0]!.slice(directory.length + 1)]);
    lostMs = last - (seq.at(-1)?.accessNs ?? 0) / 1e6;
  }
  t.true(lostMs < 500, `${lostMs} ms`);
});

test('a journal cut or torn at any byte gives what stands before', async (t) => {
  const directory = await directoryFor(t);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened({ ...open('big', 1), sizeBytes: 4 * MIB });
  writer.opened(open('caf\xe9', 2));
  await writer.flush();
  writer.read('big', read(0, 100, 3, 4));
  await writer.flush();
  writer.read('big', read(65536, 100, 5));
  writer.arrived('big', 8);
  writer.received({ atNs: 9, bytes: 10 });
  writer.opened(open('late', 10));
  await writer.flush();
  const journal = await readFile(join(directory, `${writer.id}.part`));
  const whole = writer.snapshot(end);
  await writer.discard();
  t.deepEqual(parseJournal(journal, 'j'), {
    ...whole,
    endNs: head.startNs + 10n,
    recovered: true,
  });
  const headEnd = journal.indexOf('\n') + 1;
  for (let cut = 0; cut <= journal.length; cut++) {
    if (cut < headEnd) {
      t.throws(() => parseJournal(journal.subarray(0, cut), 'j'), { name: 'FirstlightError' });
      continue;
    }
    const torn = Buffer.from(journal);
    torn.fill(0, cut);
    for (const bytes of [journal.subarray(0, cut), torn]) {
      const { seq } = parseJournal(bytes, 'j');
      t.deepEqual(
        seq.map(({ path }) => path),
        whole.seq.slice(0, seq.length).map(({ path }) => path),
      );
      parseTracer(Buffer.from(formatTracer(parseJournal(bytes, 'j'))), 'again');
    }
  }
});

test('a journal with any bytes changed is read up to there or refused', async (t) => {
  const directory = await directoryFor(t);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened({ ...open('big', 1), sizeBytes: 4 * MIB });
  writer.read('big', read(0, 100, 3, 4));
  writer.received({ atNs: 9, bytes: 10 });
  writer.opened(open('late', 10));
  await writer.flush();
  const journal = await readFile(join(directory, `${writer.id}.part`));
  await writer.discard();
  const change = fc.tuple(fc.nat(journal.length - 1), fc.uint8Array({ maxLength: 5 }), fc.nat(5));
  fc.assert(
    fc.property(change, ([at, put, cut]) => {
      const bytes = Buffer.concat([journal.subarray(0, at), put, journal.subarray(at + cut)]);
      try {
        const tracer = parseJournal(bytes, 'j');
        t.true(tracer.recovered);
        // What recovery makes of it has to be readable again, and the same.
        t.deepEqual(parseTracer(Buffer.from(formatTracer(tracer)), 'again'), tracer);
      } catch (error) {
        if (!(error instanceof FirstlightError)) throw error;
      }
    }),
    { numRuns: 2000 },
  );
});

test('recovery leaves alone what is active, sets aside what is broken, finishes what was nearly done', async (t) => {
  const directory = await directoryFor(t);
  const active = await TraceWriter.create({ directory, head });
  active.opened(open('a', 1));
  await active.flush();
  await writeFile(join(directory, 'bad.part'), 'nonsense\n');
  await writeFile(join(directory, 'done.part'), 'whatever\n');
  const tracer = active.snapshot(end);
  await saveTrace(directory, 'done', tracer);
  await writeFile(join(directory, 'done.0123abcd.new'), '{');
  const { traces, broken } = await recoverJournals(directory, new Set([active.id]));
  t.deepEqual(traces, []);
  t.deepEqual(
    broken.map(({ path, error }) => [path, error.kind]),
    [[join(directory, 'bad.part'), 'corrupt']],
  );
  t.deepEqual((await readdir(directory)).sort(), [
    `${active.id}.part`,
    'bad.part.bad',
    'done.json',
  ]);
  await active.discard();
  t.deepEqual(await recoverJournals(join(directory, 'missing')), { traces: [], broken: [] });
});

test.serial('a disk that is full for a while costs nothing; the error is told once', async (t) => {
  const directory = await directoryFor(t);
  const errors: string[] = [];
  const full = { write: false };
  const writer = await TraceWriter.create({
    directory,
    head,
    onError: (error) => errors.push(error.kind),
  });
  const { FileHandlePrototype, write } = await handlePrototype(directory);
  FileHandlePrototype.write = async function (this: unknown, ...args: unknown[]) {
    const [bytes] = args as [Buffer];
    if (full.write && bytes.includes('full-disk')) {
      throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
    }
    return write.apply(this, args);
  };
  t.teardown(() => {
    FileHandlePrototype.write = write;
  });
  full.write = true;
  writer.opened(open('full-disk', 1));
  await writer.flush();
  await writer.flush();
  t.deepEqual(errors, ['no-space']);
  full.write = false;
  writer.opened(open('later', 2));
  await writer.flush();
  const { seq } = parseJournal(await readFile(join(directory, `${writer.id}.part`)), 'j');
  t.deepEqual(
    seq.map(({ path }) => path),
    ['full-disk', 'later'],
  );
  t.truthy(await writer.finish(end));
});

test.serial('a disk that takes long to sync does not hold up what is written', async (t) => {
  const directory = await directoryFor(t);
  const { FileHandlePrototype } = await handlePrototype(directory);
  const { datasync } = FileHandlePrototype;
  const slow: (() => void)[] = [];
  let syncs = 0;
  FileHandlePrototype.datasync = () => {
    syncs++;
    return new Promise<void>((done) => slow.push(done));
  };
  t.teardown(() => {
    FileHandlePrototype.datasync = datasync;
    for (const done of slow) done();
  });
  const writer = await TraceWriter.create({ directory, head });
  for (const name of ['a', 'b', 'c']) {
    writer.opened(open(name, 1));
    await writer.flush();
  }
  t.true(syncs >= 1);
  const { seq } = parseJournal(await readFile(join(directory, `${writer.id}.part`)), 'j');
  t.is(seq.length, 3);
  for (const done of slow.splice(0)) done();
  await writer.discard();
});

test.serial('a sync that fails is told, and tried again', async (t) => {
  const directory = await directoryFor(t);
  const { FileHandlePrototype } = await handlePrototype(directory);
  const { datasync } = FileHandlePrototype;
  let syncs = 0;
  FileHandlePrototype.datasync = async () => {
    if (++syncs === 1) throw Object.assign(new Error('EIO: i/o error'), { code: 'EIO' });
  };
  t.teardown(() => {
    FileHandlePrototype.datasync = datasync;
  });
  const errors: string[] = [];
  const onError = (error: FirstlightError) => errors.push(error.message);
  const writer = await TraceWriter.create({ directory, head, onError });
  writer.opened(open('a', 1));
  await writer.flush();
  for (let i = 0; i < 2400 && syncs < 2; i++) await setTimeout(50);
  t.is(syncs, 2);
  t.deepEqual(errors, ['EIO: i/o error']);
  await writer.discard();
});

async function handlePrototype(directory: string) {
  const { open } = await import('node:fs/promises');
  const file = await open(join(directory, 'probe'), 'w');
  const FileHandlePrototype = Object.getPrototypeOf(file) as {
    write(...args: unknown[]): Promise<unknown>;
    datasync(): Promise<void>;
  };
  await file.close();
  await rm(join(directory, 'probe'));
  return { FileHandlePrototype, write: FileHandlePrototype.write };
}

test('broken files of a directory are told apart and do not stop the others', async (t) => {
  const directory = await directoryFor(t);
  const writer = await TraceWriter.create({ directory, head });
  writer.opened(open('a', 1));
  await writer.finish(end);
  await writeFile(join(directory, 'cut.json'), '{"group":"x","seq":[');
  await writeFile(join(directory, 'huge.json'), '');
  await truncate(join(directory, 'huge.json'), 1e12);
  await symlink('/dev/zero', join(directory, 'device.json'));
  await writeFile(join(directory, 'empty.json'), '{}');
  await promisify(execFile)('mkfifo', [join(directory, 'fifo.json')]);
  const { traces, broken } = await loadTraces(directory);
  t.is(traces.length, 1);
  t.deepEqual(
    broken.map(({ path }) => path.slice(directory.length + 1)),
    ['cut.json', 'device.json', 'empty.json', 'fifo.json', 'huge.json'],
  );
  const reasons = broken.map(({ error }) => error.message.replace(/^.*json:? /, ''));
  t.regex(reasons[0]!, /^is not JSON/);
  for (const at of [1, 3]) t.is(reasons[at], 'is no regular file');
  t.is(reasons[2], 'image is missing');
  t.regex(reasons[4]!, /more than the 33554432 allowed/);
});
