// Images of which a part has arrived and the rest has not, for as long as a test likes: by what a proxy holds
// (fault-proxy.ts), never by how fast a line or this machine is.
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { FaultProxy } from './fault-proxy.ts';
import { type Background, type Ended, must, until } from './proc.ts';
import type { Stage } from './stage.ts';

/** More than the header of a small image, and less than its first files: they come over several connections at once. */
export const HEADER_BYTES = 512 << 10;
const STEP_BYTES = 512 << 10;
/** A mount that takes longer than this while it is held may lack a part of its header. */
const HEADER_MS = 30_000;

/** Puts a proxy between the stage's worker and its server. */
export async function behindProxy(stage: Stage): Promise<FaultProxy> {
  const proxy = await FaultProxy.start(stage.env.FIRSTLIGHT_SERVER!);
  stage.onClose(() => proxy.close());
  stage.env.FIRSTLIGHT_SERVER = proxy.url;
  return proxy;
}

/** Mounts an image of which little more than the header comes until the proxy lets it; the directory. */
export async function mountHeld(
  stage: Stage,
  proxy: FaultProxy,
  image: string,
  options: string[] = [],
  { bytes = HEADER_BYTES, name = 'mnt' } = {},
): Promise<string> {
  proxy.holdAfter(bytes);
  const directory = join(stage.dir, name);
  await mkdir(directory).catch((error: NodeJS.ErrnoException) => {
    // It may be there, with a dead mount on it.
    if (error.code !== 'EEXIST') throw error;
  });
  const mounting = stage.start(['mount', image, directory, ...options]);
  let since = performance.now();
  await until(`${image} is mounted`, () => {
    if (!mounting.running) return true;
    if (proxy.isHolding && performance.now() - since > HEADER_MS) {
      proxy.holdAfter(STEP_BYTES / 8);
      since = performance.now();
    }
    return false;
  });
  const { code, stderr } = await mounting.ended;
  if (code !== 0) throw new Error(`mount ended with ${code}: ${stderr}`);
  return directory;
}

/**
 * Lets the image come in steps until `done`, and only while some reader of the stage's mounts waits: so that little
 * more has come then than that needs, however long programs compute.
 * @param stepBytes  for each time that it holds, a reader waits, and `done` is not yet
 */
export async function arriveUntil(
  stage: Stage,
  proxy: FaultProxy,
  what: string,
  done: () => Promise<boolean> | boolean,
  stepBytes = STEP_BYTES,
): Promise<void> {
  await until(
    what,
    async () => {
      if (await done()) return true;
      if (!proxy.isHolding) return false;
      const { mounts } = await stage.status();
      if (mounts.some(({ waiting }) => waiting > 0)) proxy.holdAfter(stepBytes);
      return false;
    },
    { everyMs: 50 },
  );
}

/** Resolves when so many requests of a mount wait for what has not arrived. */
export function waits(stage: Stage, directory: string, atLeast = 1): Promise<boolean> {
  return until(
    `${atLeast} requests wait`,
    async () => (await stage.mountStatus(directory)).waiting >= atLeast,
    { everyMs: 100 },
  );
}

/**
 * How a program ended, which was to end by itself.
 * @throws where it has not after a minute: the line that it waits for is held, and waits are given up after five
 */
export async function endOf(program: Background, what: string): Promise<Ended> {
  await until(what, () => !program.running, { timeoutMs: 60_000 });
  return program.ended;
}

/**
 * A process that waits in a mount and has been sent a signal: resolves when the kernel has told the daemon, and the
 * daemon has heard of it. What waits for an answer despite a signal is in uninterruptible sleep.
 */
export async function signalIsTold(pid: number, directory: string): Promise<void> {
  await until('the kernel has told of the signal', async () =>
    /^\d+ \(.*\) D/s.test(await readFile(`/proc/${pid}/stat`, 'latin1')),
  );
  // Told signals are read ahead of requests: what is asked now is answered after them.
  const name = `${directory}/none-${Math.random()}`;
  await must('sh', ['-c', '! test -e "$0"', name]);
}

/** The moment that a try needs had passed before it could be used. */
export class MissedError extends Error {}

const TRIES = 5;

/**
 * Sets the stage anew where the moment that a test needs was missed (a `MissedError`), and only there: whatever else
 * fails has failed at once.
 */
export async function untilMet<T>(
  t: ExecutionContext<unknown>,
  attempt: (round: number) => Promise<T>,
): Promise<T> {
  for (let round = 1; ; round++) {
    try {
      return await attempt(round);
    } catch (error) {
      if (!(error instanceof MissedError) || round === TRIES) throw error;
      t.log(`try ${round}: ${error.message}`);
      await sleep(0);
    }
  }
}
