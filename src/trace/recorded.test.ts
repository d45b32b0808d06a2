// The recorded traces in traces/: that they are read whole, and that what docs/TRACES.md says of traces
// holds for real ones.
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { loadTraces } from './files.ts';
import { DEFAULT_GROUP, TRACE_PART_BYTES } from './tracer.ts';

const DIRECTORY = fileURLToPath(new URL('../../traces/', import.meta.url));
const BLOCK_BYTES = 64 << 10;

const recorded = await loadTraces(DIRECTORY);

test('every recorded trace is read without complaint, and the page lists it', async (t) => {
  t.deepEqual(recorded.broken, []);
  t.true(recorded.traces.length >= 7);
  const page = await readFile(`${DIRECTORY}README.md`, 'utf8');
  const listed = [...page.matchAll(/^\| `(.+)\.json`/gm)].map(([, name]) => name);
  t.deepEqual(listed.sort(), recorded.traces.map(({ id }) => id).sort());
  for (const { id, tracer } of recorded.traces) {
    t.like(tracer, { group: DEFAULT_GROUP, image: `${id}:new`, platform: 'linux/amd64' });
    t.regex(tracer.digest!, /^sha256:[0-9a-f]{64}$/);
    t.is(tracer.lost, undefined, id);
    t.is(tracer.recovered, undefined, id);
    t.true(tracer.endNs > tracer.startNs);
  }
});

test('files are in order of access, each once, with size and digest', (t) => {
  for (const { id, tracer } of recorded.traces) {
    const spanNs = Number(tracer.endNs - tracer.startNs);
    let before = 0;
    for (const { path, accessNs, waitNs, sizeBytes, digest } of tracer.seq) {
      t.true(accessNs >= before && accessNs + waitNs <= spanNs, `${id}: ${path}`);
      t.true(sizeBytes === 0 || /^[0-9a-f]{64}$/.test(digest ?? ''), `${id}: ${path}`);
      before = accessNs;
    }
    t.is(new Set(tracer.seq.map(({ path }) => path)).size, tracer.seq.length, id);
  }
});

test('ranges are those of large files: blocks, cut at every MiB, no byte twice', (t) => {
  let partly = 0;
  for (const { id, tracer } of recorded.traces) {
    for (const { path, sizeBytes = 0, accessNs, ranges } of tracer.seq) {
      const name = `${id}: ${path}`;
      if (sizeBytes <= TRACE_PART_BYTES) {
        t.is(ranges, undefined, name);
        continue;
      }
      const blocks = new Set<number>();
      for (const range of ranges ?? []) {
        const end = range.offsetBytes + range.lengthBytes;
        t.is(range.offsetBytes % BLOCK_BYTES, 0, name);
        t.true(end === sizeBytes || (end % BLOCK_BYTES === 0 && end < sizeBytes), name);
        const part = (at: number) => Math.floor(at / TRACE_PART_BYTES);
        t.is(part(range.offsetBytes), part(end - 1), name);
        t.true(range.accessNs >= accessNs, name);
        for (let at = range.offsetBytes; at < end; at += BLOCK_BYTES) {
          t.false(blocks.has(at), name);
          blocks.add(at);
        }
      }
      if (ranges !== undefined && blocks.size * BLOCK_BYTES < sizeBytes) partly++;
    }
  }
  t.true(partly > 0, 'a service that reads parts of large files is among them');
});

test('a run on an empty worker has waited, and bytes came while it ran', (t) => {
  for (const { id, tracer } of recorded.traces) {
    const waits = tracer.seq.flatMap(({ waitNs, ranges = [] }) => [
      waitNs,
      ...ranges.map((range) => range.waitNs),
    ]);
    t.true(
      waits.some((ns) => ns > 0),
      id,
    );
    const { received = [] } = tracer;
    t.true(received.length > 0, id);
    for (let i = 1; i < received.length; i++) {
      t.true(received[i]!.bytes >= received[i - 1]!.bytes, id);
    }
  }
});
