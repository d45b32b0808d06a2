// `make demo`: its last line, that redis answers before its image is there, and that it leaves nothing.
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { MissedError, untilMet } from '../lib/arriving.ts';
import { REPOSITORY, testImage } from '../lib/images.ts';
import { mountsBelow, processesOf } from '../lib/leaks.ts';
import { Background, until } from '../lib/proc.ts';

const KEYS = [
  'header_ms',
  'mounted_ms',
  'first_read_ms',
  'ready_ms',
  'last_frame_ms',
  'bytes_ready',
  'bytes_all',
] as const;

/** Starts the demo with a temporary directory of its own. */
async function start(rate = '100mbit'): Promise<{ tmp: string; demo: Background }> {
  await testImage('redis');
  const tmp = await mkdtemp(join(tmpdir(), 'firstlight-demo-test-'));
  const demo = new Background(process.execPath, [join(REPOSITORY, 'bench/demo.ts')], {
    cwd: REPOSITORY,
    env: {
      ...process.env,
      TMPDIR: tmp,
      DEMO_RATE: rate,
      // Compiled code is kept from one run to the next, and is no part of what the demo makes.
      NODE_COMPILE_CACHE: join(REPOSITORY, '.cache/node'),
    },
  });
  return { tmp, demo };
}

/** Fails where anything of it is left. */
async function nothingLeft(t: import('ava').ExecutionContext<unknown>, tmp: string, stage: string) {
  t.deepEqual(await mountsBelow(tmp), []);
  t.deepEqual(await processesOf(stage), []);
  t.deepEqual(await readdir(tmp), []);
  await rm(tmp, { recursive: true });
}

test.serial('redis answers before the last frame is in, and nothing is left', async (t) => {
  // On a machine that is too busy for one rate to tell the two apart, a slower one does.
  const demo = await untilMet(t, async (round) => {
    const { tmp, demo } = await start(`${100 / 2 ** (round - 1)}mbit`);
    const stage = join(
      tmp,
      await until('the demo has a directory', async () => (await readdir(tmp))[0]),
    );
    const { code, stderr } = await demo.ended;
    await nothingLeft(t, tmp, stage);
    if (stderr.includes('only when the whole image had arrived')) throw new MissedError(stderr);
    t.is(code, 0, stderr);
    return demo;
  });
  const time = JSON.parse(demo.stdout.trim().split('\n').at(-1)!) as Record<string, number>;
  t.deepEqual(Object.keys(time), [...KEYS]);
  for (const key of KEYS) t.true(Number.isInteger(time[key]) && time[key]! > 0, key);
  const { header_ms, mounted_ms, first_read_ms, ready_ms, last_frame_ms } = time as Record<
    (typeof KEYS)[number],
    number
  >;
  t.true(header_ms <= mounted_ms && mounted_ms <= first_read_ms, JSON.stringify(time));
  t.true(first_read_ms < ready_ms && ready_ms < last_frame_ms, JSON.stringify(time));
  t.true(time.bytes_ready! < time.bytes_all!);
});

test.serial('Ctrl-C while redis runs ends the demo and leaves nothing', async (t) => {
  const { tmp, demo } = await start();
  const stage = join(
    tmp,
    await until('the demo has a directory', async () => (await readdir(tmp))[0]),
  );
  await until(
    'a container runs',
    async () =>
      !demo.running ||
      (await processesOf(stage)).some((each) => / run redis:demo /.test(`${each.command} `)),
    { timeoutMs: 240_000 },
  );
  t.true(demo.running, demo.stderr);
  demo.child.kill('SIGINT');
  t.is((await demo.ended).code, 130, demo.stderr);
  await nothingLeft(t, tmp, stage);
});
