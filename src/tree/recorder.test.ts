// What a recorder makes of accesses, in whatever order they come. What does not live here: the files
// (src/trace), and how accesses are seen (test/native, test/e2e).
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { quietLog } from '../../test/receive/fixture.ts';
import { Toc } from '../delta/toc.ts';
import { buildToc } from '../delta/toc-build.ts';
import { fromText, makeDirectory } from '../image/tree.ts';
import { CONTENT_STATE, type NativeTemplate } from '../native/index.ts';
import { loadTrace } from '../trace/files.ts';
import { Recorder } from './recorder.ts';
import type { Access } from './session.ts';
import { Template } from './template.ts';

const MIB = 1 << 20;
const SIZES = { there: 100, later: 200, large: 3 * MIB } as const;
type Name = keyof typeof SIZES;

interface World {
  recorder: Recorder;
  directory: string;
  /** The session has seen these. */
  saw(...accesses: (Partial<Access> & { name: Name })[]): Promise<void>;
  /** The content of a file is there from now on. */
  arrive(name: Name): void;
}

/** A recorder of an image of which `later` is not there yet. */
async function world(t: ExecutionContext): Promise<World> {
  const directory = await mkdtemp(join(tmpdir(), 'fl-recorder-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const root = makeDirectory('', 0);
  for (const [i, [name, size]] of Object.entries(SIZES).entries()) {
    const inode = { ...root.inode, type: 'file' as const, size, digest: `${i + 1}`.repeat(64) };
    root.children!.set(fromText(name), { name: fromText(name), inode });
  }
  const toc = new Toc(buildToc(root).bytes);
  const rowOf = (name: Name) =>
    Array.from({ length: toc.rows }, (_, row) => row).find((row) => toc.path(row) === name)!;
  const digests = join(directory, 'digests');
  const slots = Object.keys(SIZES).map((_, content) => Buffer.alloc(32, 0xa0 + content));
  await writeFile(digests, Buffer.concat(slots));
  const missing = new Set([toc.content(rowOf('later'))]);
  const state = (content: number) =>
    missing.has(content) ? CONTENT_STATE.Empty : CONTENT_STATE.RoLayer;
  const template = new Template(
    `sha256:${'f'.repeat(64)}`,
    toc,
    { state } as NativeTemplate,
    digests,
  );
  let accesses: Access[] = [];
  const takeTrace = () => ({ accesses: accesses.splice(0), lost: 0 });
  const recorder = await Recorder.start({
    sink: { directory, platform: 'linux/amd64', receivedBytes: () => 0 },
    group: 'shop',
    image: 'app:1',
    template,
    session: { setTracing: () => undefined, takeTrace },
    log: quietLog().log,
  });
  const saw = (...seen: (Partial<Access> & { name: Name })[]) => {
    const plain = { kind: 'open', atNs: 5000, waitNs: 0, offsetBytes: 0, lengthBytes: 0 } as const;
    accesses = seen.map(({ name, ...access }) => ({
      ...plain,
      readsSeen: true,
      row: rowOf(name),
      ...access,
    }));
    return recorder.drain();
  };
  return { recorder, directory, saw, arrive: (name) => missing.delete(toc.content(rowOf(name))) };
}

test('a file that is there is one line of the journal, with all that there is to say', async (t) => {
  const { recorder, directory, saw, arrive } = await world(t);
  await saw({ name: 'there' }, { name: 'later', atNs: 6000 });
  await saw();
  arrive('later');
  await saw();
  // A drain of nothing else: the journal is written a moment later.
  const journal = (await readdir(directory)).find((name) => name.endsWith('.part'))!;
  let lines: string[] = [];
  while (lines.length < 5) {
    lines = (await readFile(join(directory, journal), 'utf8')).split('\n');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  const said = lines.filter((line) => /"f"|"i"/.test(line)).map((line) => JSON.parse(line));
  t.is(said.length, 3);
  t.like(said[0], { f: 'there', v: 0, z: 100 });
  t.regex(said[0].d, /^a[0-2]/);
  t.like(said[1], { f: 'later', v: undefined });
  t.like(said[2], { i: 1, v: 0 });
  await recorder.stop();
});

test('a read that is heard of before its open tells of its file as much as the open', async (t) => {
  const { recorder, saw } = await world(t);
  const read = { name: 'large', kind: 'read', offsetBytes: 3 * MIB - 10, lengthBytes: 10 } as const;
  await saw({ ...read, atNs: 7000 }, { name: 'large', atNs: 9000 }, { name: 'there', atNs: 9500 });
  const trace = await loadTrace((await recorder.stop())!);
  t.deepEqual(
    trace.seq.map(({ path }) => path),
    ['large', 'there'],
  );
  const [large, there] = trace.seq;
  t.like(large, { sizeBytes: 3 * MIB, arrivedNs: 0, waitNs: 0 });
  t.is(there!.accessNs - large!.accessNs, 2500);
  t.regex(large!.digest!, /^a[0-2]/);
  t.deepEqual(
    large!.ranges!.map(({ offsetBytes, lengthBytes }) => [offsetBytes, lengthBytes]),
    [[3 * MIB - 65_536, 65_536]],
  );
});
