// The commands on traces, run as a user runs them, against a real server: listing, showing, exporting,
// reporting, simulating, and how each fails.
import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { TraceReceipt, TraceSummary } from '../delta/protocol.ts';
import { addRootfs, makeTar, noise, serve } from '../serve/testkit.ts';
import { orderNow, traceOf } from '../serve/testkit-traces.ts';

const PROGRAM = new URL('../../bin/firstlight.js', import.meta.url).pathname;
const TOKEN = 'correct-horse.battery';

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

interface World {
  dir: string;
  traces: string;
  url: string;
  run(...args: string[]): Promise<Ended>;
}

/** A server with two versions of an image and another one, and a worker's root with three runs. */
async function world(t: ExecutionContext, token?: string): Promise<World> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-cli-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  const traces = join(dir, 'root/traces');
  await mkdir(traces, { recursive: true });
  const { url } = await serve(t);
  const files = (version: string) =>
    makeTar({ a: `a ${version}`, [`lib/x.so.${version}`]: noise(2_500_000, 3), z: 'z' });
  await addRootfs(url, 'app:1', await files('1.1'));
  await addRootfs(url, 'app:2', await files('1.2'));
  const save = (id: string, image: string, paths: string[], more = {}) =>
    writeFile(join(traces, `${id}.json`), traceOf(image, paths, more));
  await save('20260101-app-1', 'app:1', ['z'], { start: '2026-01-01T00:00:00Z', end: undefined });
  await save('20260102-app-2', 'app:1', ['z', 'lib/x.so.1.1'], { group: 'shop' });
  let server = url;
  if (token !== undefined) {
    const guarded = await serve(t, { token });
    server = guarded.url;
  }
  const run = (...args: string[]) =>
    new Promise<Ended>((resolve, reject) => {
      const env = { PATH: process.env.PATH, HOME: dir, FIRSTLIGHT_SERVER: server };
      const child = spawn(process.execPath, [PROGRAM, ...args, '--root', join(dir, 'root')], {
        cwd: dir,
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const ended: Ended = { code: null, stdout: '', stderr: '' };
      child.stdout.on('data', (chunk) => {
        ended.stdout += chunk;
      });
      child.stderr.on('data', (chunk) => {
        ended.stderr += chunk;
      });
      child.on('error', reject);
      child.on('close', (code) => resolve({ ...ended, code }));
    });
  return { dir, traces, url, run };
}

test('ls and show: what was recorded, and broken files told apart', async (t) => {
  const { traces, run } = await world(t);
  await writeFile(join(traces, 'broken.json'), '{"image":"x"');
  await writeFile(
    join(traces, '20260103-evil.json'),
    JSON.stringify({
      image: 'app:1',
      start: '2026-01-03T00:00:00Z',
      seq: [{ f: 'bin/\u001b]0;owned\u0007x', s: 0, a: 5_000_000, w: 2_000_000, z: 7 }],
    }),
  );
  const list = await run('trace', 'ls');
  t.is(list.code, 0, list.stderr);
  const rows = list.stdout.trimEnd().split('\n');
  t.is(rows.length, 4);
  t.regex(rows[1]!, /^20260101-app-1 +default +app:1 +2026-01-01 00:00:00 /);
  t.regex(list.stderr, /left out: .*broken\.json/);
  const json = JSON.parse((await run('trace', 'ls', '--json')).stdout);
  t.is(json.traces.length, 3);
  t.is(json.broken.length, 1);
  const shown = await run('trace', 'show');
  t.regex(shown.stdout, /5\.0 ms +2\.0 ms +7 B +\/bin\/\\u\{1b\}/);
  t.false(shown.stdout.includes('\u001b'), 'a name cannot speak to the terminal');
  const one = JSON.parse((await run('trace', 'show', '20260102', '--json')).stdout);
  t.is(one.seq.length, 2);
  for (const [arg, code, line] of [
    ['2026', 2, /3 traces begin with 2026/],
    ['nope', 3, /no trace nope/],
    [join(traces, 'broken.json'), 9, /not JSON/],
  ] as const) {
    const ended = await run('trace', 'show', arg);
    t.is(ended.code, code, ended.stderr);
    t.regex(ended.stderr, line);
    t.is(ended.stdout, '');
  }
});

test('export: one run, groups as they are, and merged, as JSON and CSV, whole or not at all', async (t) => {
  const { dir, traces, run } = await world(t);
  const one = await run('trace', 'export', '20260102');
  t.is(JSON.parse(one.stdout).seq.length, 2);
  const csv = await run('trace', 'export', join(traces, '20260102-app-2.json'), '--format', 'csv');
  t.regex(csv.stdout, /^path,.*\r\nz,,0,0,0,,,,\r\nlib\/x\.so\.1\.1,,0,1000000,/);
  const runs = JSON.parse((await run('trace', 'export', '--as', 'runs')).stdout);
  t.deepEqual(Object.keys(runs), ['Groups']);
  t.is(runs.Groups.length, 2);
  const merged = await run('trace', 'export', '--output', 'x.json');
  t.is(merged.code, 0, merged.stderr);
  t.is(merged.stdout, '');
  t.true(JSON.parse(await readFile(join(dir, 'x.json'), 'utf8')).Groups.length > 0);
  t.is((await run('trace', 'export', '--format', 'csv', '-o', '/dev/null')).code, 0);
  const nowhere = await run('trace', 'export', '-o', 'no/such/dir/x.json');
  t.is(nowhere.code, 3, nowhere.stderr);
  t.is((await run('trace', 'export', '--format', 'xml')).code, 2);
  t.is((await run('trace', 'export', '--as', 'trace')).code, 2, 'two runs are no single one');
  t.deepEqual((await readdir(dir)).sort(), ['root', 'x.json']);
});

test('report: the runs go to the server, and its order follows', async (t) => {
  const { url, traces, run } = await world(t);
  await writeFile(join(traces, '20260104-other.json'), traceOf('other:1', ['z']));
  t.is((await orderNow(url, 'app:2')).paths[0], 'a');
  const all = await run('trace', 'report', '--wait');
  t.is(all.code, 3, 'one of the images is not there');
  t.regex(all.stderr, /20260104-other was not taken: there is no image other:1/);
  t.is(all.stdout.trimEnd().split('\n').length, 2);
  t.is((await orderNow(url, 'app:1')).paths[0], 'z');
  t.is((await orderNow(url, 'app:2')).paths[0], 'z', 'the other version, too');
  const again = await run('trace', 'report', '20260102', '--json');
  const { reported, failed } = JSON.parse(again.stdout) as {
    reported: TraceReceipt[];
    failed: unknown[];
  };
  t.deepEqual(failed, []);
  t.like(reported, { length: 1, 0: { added: false } });
  t.is(reported[0]!.images.length, 2);
  const mixed = await run('trace', 'report', '--json');
  t.is(mixed.code, 3);
  const { failed: refused, reported: taken } = JSON.parse(mixed.stdout);
  t.is(taken.length, 2);
  t.like(refused, { length: 1, 0: { error: { kind: 'not-found' } } });
  const listed = await run('trace', 'ls', '--reported', '--json');
  t.is((JSON.parse(listed.stdout) as TraceSummary[]).length, 2);
  const inspect = JSON.parse((await run('image', 'inspect', 'app:1', '--json')).stdout);
  t.like(inspect.order, { runs: 2, settled: true });
});

test('simulate: every wait under four orders, of the image and of another version', async (t) => {
  const { run } = await world(t);
  const table = await run('optimize', 'simulate', '20260102', '--bandwidth', '8mbit');
  t.is(table.code, 0, table.stderr);
  t.regex(table.stdout, /TREE +SIZE +RECORDED +MERGED +WAIT FOR/);
  t.regex(table.stdout, /\/lib\/x\.so\.1\.1/);
  const simulated = async (...more: string[]) =>
    JSON.parse((await run('optimize', 'simulate', '20260102', '--json', ...more)).stdout);
  const own = await simulated('--bandwidth', '8mbit', '--rtt', '100ms');
  t.like(own, { bytesPerSecond: 1_000_000, roundTripMs: 100, measured: true, runs: 2 });
  const z = own.waits.find((wait: { path: string }) => wait.path === '/z').orders;
  t.true(z.recorded.endedMs < z.tree.endedMs, 'z stands last in the tree, and was read first');
  t.true(own.orders.recorded.doneMs <= own.orders.tree.doneMs);
  const other = await simulated('--image', 'app:2');
  t.deepEqual(
    other.waits.map((wait: { path: string }) => wait.path),
    ['/z', '/lib/x.so.1.2'],
  );
  const slow = await simulated('--in-order');
  t.is(slow.orders.tree.fetched, 0);
  for (const [args, code] of [
    [['--bandwidth', 'fast'], 2],
    [['--bandwidth', 'off'], 2],
    [['--rtt', 'long'], 2],
    [['--image', 'nope:1'], 3],
    [['--server', 'http://127.0.0.1:1'], 4],
  ] as const) {
    const ended = await run('optimize', 'simulate', '20260102', ...args);
    t.is(ended.code, code, ended.stderr);
    t.is(ended.stdout, '');
  }
});

test('report --html: one page, with predictions where the image is known', async (t) => {
  const { dir, run } = await world(t);
  t.is((await run('trace', 'report', '20260102', '--html', 'one.html')).code, 0);
  const page = await readFile(join(dir, 'one.html'), 'utf8');
  t.regex(page, /^<!doctype html>/);
  t.regex(page, /smallest first/);
  const args = ['trace', 'report', '20260102', '--server', 'http://127.0.0.1:1', '--html'];
  const alone = await run(...args, 'two.html');
  t.is(alone.code, 0);
  t.regex(alone.stderr, /no predictions/);
  t.notRegex(await readFile(join(dir, 'two.html'), 'utf8'), /smallest first/);
  t.is((await run('trace', 'report', '20260101', '20260102', '--html', 'x.html')).code, 2);
  t.deepEqual((await readdir(dir)).sort(), ['one.html', 'root', 'two.html']);
});

test('a server with a token gets it from the file, and nobody else does', async (t) => {
  const { dir, run } = await world(t, TOKEN);
  const tar = join(dir, 'app.tar');
  await writeFile(tar, await makeTar({ a: 'a', z: 'z' }));
  await writeFile(join(dir, 'token'), `${TOKEN}\n`);
  await writeFile(join(dir, 'wrong'), 'another-token');
  await writeFile(join(dir, 'bad'), 'two words');
  const add = (...more: string[]) =>
    run('image', 'add', `rootfs:${tar}`, '--name', 'app:1', '--platform', 'linux/amd64', ...more);
  for (const [file, code] of [
    [undefined, 10],
    ['wrong', 10],
    ['bad', 2],
    ['missing', 3],
  ] as const) {
    const flags = file === undefined ? [] : ['--token-file', file];
    for (const ended of [await add(...flags), await run('trace', 'report', ...flags)]) {
      t.is(ended.code, code, `${file}: ${ended.stderr}`);
      t.false(`${ended.stdout}${ended.stderr}`.includes('two words'));
    }
  }
  t.is((await add('--token-file', 'token')).code, 0);
  t.is((await run('trace', 'report', '--token-file', 'token', '--wait')).code, 0);
  t.is((await run('image', 'rm', 'app:1')).code, 10);
  t.is((await run('image', 'rm', 'app:1', '--token-file', 'token')).code, 0);
});
