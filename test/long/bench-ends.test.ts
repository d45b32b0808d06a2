// However a bench ends, what it has started and mounted goes with it: its processes (and with them its networks and
// mounts, which are its own), and its directory.
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { REPOSITORY } from '../lib/images.ts';
import { processesOf, STAGE_MARK } from '../lib/leaks.ts';
import { Background, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

const NODE = join(REPOSITORY, 'node_modules/node/bin/node');
const BENCH = join(REPOSITORY, 'test/lib/small-bench.ts');

/** Starts the bench, by `around` where given, in a process group of its own. */
async function start(t: ExecutionContext, mode: string, around: string[] = []) {
  const stage = await Stage.open(t);
  const [command, ...args] = [...around, NODE, BENCH, mode];
  const env = { ...stage.env, [STAGE_MARK]: stage.dir, BENCH_DIR: stage.dir };
  const bench = new Background(command!, args, { env, detached: true });
  const processes = () => processesOf(stage.dir);
  const up = () =>
    until(
      'the bench is up',
      async () => {
        if (!bench.running) throw new Error(`it has ended: ${bench.stderr}`);
        return bench.stdout.includes('up');
      },
      { timeoutMs: 240_000 },
    );
  /** Nothing is left, two minutes after the end at the latest. */
  const gone = async () => {
    await bench.ended;
    await until('all processes are gone', async () => (await processes()).length === 0);
    t.deepEqual(await readdir(stage.dir), []);
  };
  return { stage, bench, up, gone, processes };
}

for (const mode of ['ends', 'fails']) {
  test(`a bench that ${mode} leaves nothing`, async (t) => {
    const { bench, gone } = await start(t, mode);
    await gone();
    t.is((await bench.ended).code, mode === 'ends' ? 0 : 1, bench.stderr);
    t.is(bench.stderr.includes('it fails'), mode === 'fails');
  });
}

test('SIGTERM while a bench starts', async (t) => {
  const { stage, bench, gone } = await start(t, 'stays');
  await until('its directory is there', async () => (await readdir(stage.dir)).length > 0);
  bench.child.kill('SIGTERM');
  await gone();
  t.is((await bench.ended).code, 143);
});

test('SIGTERM while a bench runs', async (t) => {
  const { bench, up, gone, processes } = await start(t, 'stays');
  await up();
  t.true((await processes()).some(({ command }) => command.includes('relay')));
  bench.child.kill('SIGTERM');
  await gone();
  t.is((await bench.ended).code, 143);
});

test('Ctrl-C reaches the whole process group', async (t) => {
  const { bench, up, gone } = await start(t, 'stays');
  await up();
  process.kill(-bench.pid, 'SIGINT');
  await gone();
  t.is((await bench.ended).code, 130);
});

test('a second signal does not wait for an orderly end', async (t) => {
  const { bench, up, gone } = await start(t, 'stays');
  await up();
  bench.child.kill('SIGTERM');
  bench.child.kill('SIGINT');
  await gone();
});

test('timeout ends a bench', async (t) => {
  const { bench, gone } = await start(t, 'stays', ['timeout', '3']);
  await gone();
  t.is((await bench.ended).code, 124);
});

test('kill -9 of the process that was started', async (t) => {
  const { bench, up, gone } = await start(t, 'stays');
  await up();
  bench.child.kill('SIGKILL');
  await gone();
});

test('kill -9 of the bench itself, inside', async (t) => {
  const { bench, up, gone, processes } = await start(t, 'stays');
  await up();
  const inside = (await processes()).filter(
    ({ pid, command }) => pid !== bench.pid && command.startsWith(`${NODE} ${BENCH}`),
  );
  t.is(inside.length, 1);
  process.kill(inside[0]!.pid, 'SIGKILL');
  await gone();
  t.is((await bench.ended).code, 137);
});
