// Copies that nobody comes back for: of callers that were killed while they waited.
import { closeSync, existsSync, constants as flags, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import ava, { type ExecutionContext } from 'ava';
import { Wait } from './operations.ts';
import { AS_ROOT, errnoOfCall, type Stage, stage } from './testing.ts';

const test = AS_ROOT ? ava : ava.skip;
const { O_WRONLY } = flags;
const ENOSPC = 28;

function image(t: ExecutionContext, unclaimedMs?: number): Stage {
  const names = Array.from({ length: 20 }, (_, i) => [`f${i}`, { data: `content ${i}` }]);
  const s = stage(t, Object.fromEntries(names));
  s.unclaimedMs = unclaimedMs;
  s.reopen();
  return s;
}

/** Asks for a copy and waits until it is there, but does not come back for it. */
async function ask(s: Stage, name: string): Promise<void> {
  try {
    s.tree.open(s.node(name), O_WRONLY, false);
  } catch (error) {
    if (!(error instanceof Wait)) throw error;
    await error.done;
  }
}

async function opens(s: Stage, name: string): Promise<void> {
  const opened = await s.go((tree) => tree.open(s.node(name), O_WRONLY, false));
  if (opened.kind === 'upper') closeSync(opened.fd);
}

test('a copy that nobody comes for goes, and is made again for the next who asks', async (t) => {
  const s = image(t, 20);
  await ask(s, 'f0');
  t.is(readdirSync(s.work).length, 1);
  for (let i = 0; readdirSync(s.work).length > 0 && i < 500; i++) await sleep(20);
  t.deepEqual(readdirSync(s.work), []);
  await opens(s, 'f0');
  t.true(existsSync(join(s.upper, 'f0')));
});

test('no more than a few such copies wait, the latest ones', async (t) => {
  const s = image(t);
  for (let i = 0; i < 20; i++) await ask(s, `f${i}`);
  t.true(readdirSync(s.work).length <= 17);
  for (let i = 0; i < 20; i++) await opens(s, `f${i}`);
  t.deepEqual(readdirSync(s.work), []);
});

test('an error that nobody came for is not that of a later caller', async (t) => {
  const s = image(t, 20);
  const whole = s.io;
  let failures = 0;
  s.io = new Proxy(whole, {
    get: (io, call: keyof typeof whole) => {
      if (call !== 'copyFile' || failures > 0) return io[call];
      return () => {
        failures++;
        return Promise.reject(Object.assign(new Error('full'), { code: 'ENOSPC', errno: ENOSPC }));
      };
    },
  });
  s.reopen();
  await ask(s, 'f0');
  t.is(failures, 1);
  await sleep(100);
  t.is(await errnoOfCall(() => opens(s, 'f0')), 0);
});
