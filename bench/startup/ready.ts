// Waits for a service by its own ready condition, at either end of the link. A port is asked by a
// small program in that end's network namespace (wanprobe.cc), a line is looked for in the container's
// own output. What does not live here: the conditions (bench/images/services.json).
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Service } from '../images/services.ts';
import type { Wan } from '../wan/wan.ts';

const TIMEOUT_MS = 180_000;
const OUTPUT_MAX = 16 << 10;

/** The end of a container's output so far, for error texts. */
class Output {
  #text = '';
  #line = '';
  readonly #watch: ((text: string) => void)[] = [];

  constructor(child: ChildProcess) {
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on('data', (data: Buffer) => {
        const text = data.toString('latin1');
        this.#text = (this.#text + text).slice(-OUTPUT_MAX);
        this.#line += text;
        for (const watch of this.#watch) watch(this.#line);
        this.#line = this.#line.slice(this.#line.lastIndexOf('\n') + 1);
      });
    }
  }

  /** When a line has matched, ms since 1970. */
  matched(pattern: RegExp): Promise<number> {
    return new Promise((resolve) => {
      this.#watch.push((text) => {
        if (pattern.test(text)) resolve(Date.now());
      });
    });
  }

  get end(): string {
    return this.#text.slice(-2000);
  }
}

/** Asks a port until it gives the expected answer; ms since 1970. */
async function answered(
  wan: Wan,
  at: 'client' | 'server',
  ready: { tcp: number; send: string; expect: string },
  signal: AbortSignal,
): Promise<number> {
  const args = ['ready', String(ready.tcp), ready.send, ready.expect, String(TIMEOUT_MS)];
  const [command, rest] = (at === 'client' ? wan.atClient : wan.atServer).call(
    wan,
    wan.probe,
    args,
  );
  const probe = spawn(command, rest, { stdio: ['ignore', 'pipe', 'inherit'], signal });
  // Ended by the signal: somebody else has won.
  probe.on('error', () => undefined);
  let text = '';
  probe.stdout.on('data', (data: Buffer) => {
    text += data.toString();
  });
  const [code] = (await once(probe, 'close')) as [number | null];
  const line = /^\{.*\}$/m.exec(text)?.[0];
  if (code !== 0 || line === undefined) throw new Error(`the probe ended with ${code}`);
  return (JSON.parse(line) as { ready_at_ms: number }).ready_at_ms;
}

/**
 * Waits until a container that has just been started is ready.
 * @returns the moment, ms since 1970
 * @throws where it ends first, or is not ready in time
 */
export async function waitReady(
  service: Service,
  options: { child: ChildProcess; wan: Wan; at: 'client' | 'server' },
): Promise<number> {
  const { child, wan, at } = options;
  const { ready } = service;
  const output = new Output(child);
  const stop = new AbortController();
  const fail = (why: string): never => {
    throw new Error(`${service.name} ${why}; it printed: ${output.end}`);
  };
  const races: Promise<number>[] = [
    sleep(TIMEOUT_MS, undefined, { signal: stop.signal }).then(() => fail('is not ready in time')),
    once(child, 'exit', { signal: stop.signal }).then(([code]) => {
      const endedAt = Date.now();
      return 'exit' in ready && code === ready.exit ? endedAt : fail(`ended with ${code}`);
    }),
  ];
  if ('tcp' in ready) races.push(answered(wan, at, ready, stop.signal));
  if ('log' in ready) races.push(output.matched(new RegExp(ready.log)));
  // Of the losers nobody wants to hear.
  for (const race of races) race.catch(() => undefined);
  try {
    return await Promise.race(races);
  } finally {
    stop.abort();
  }
}
