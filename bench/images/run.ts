// One container of a service under firstlight, from the command to ready to its end, in a network
// namespace of the bench's own (lib/enclosure.ts), so that a service has its usual port whatever else
// runs on the machine. What does not live here: what is measured, images (services.ts).
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { ENTRY, NODE, type Worker } from '../lib/program.ts';
import type { Workspace } from '../lib/workspace.ts';
import { type Service, waitReady } from './services.ts';

const READY_TIMEOUT_MS = 180_000;
const END_TIMEOUT_MS = 30_000;
const OUTPUT_MAX = 64 << 10;

/** A started container. */
export class Running {
  readonly service: Service;
  /** When the command was started, ms since 1970. */
  readonly startedAt: number;
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | null>;
  readonly #ready: Promise<number>;
  #output = '';

  /**
   * `firstlight run IMAGE` with the service's own command.
   * @param args  options of `run`, such as `['--trace', 'shop']`
   */
  constructor(space: Workspace, worker: Worker, service: Service, image: string, args: string[]) {
    this.service = service;
    this.startedAt = Date.now();
    this.#child = spawn(NODE, [ENTRY, 'run', image, '--runtime', 'runc', ...args], {
      env: { ...process.env, FIRSTLIGHT_ROOT: worker.root, FIRSTLIGHT_SERVER: worker.server },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    space.defer(() => space.end(this.#child));
    const { stdout, stderr } = this.#child;
    if (stdout === null || stderr === null) throw new Error('the container has no output');
    for (const stream of [stdout, stderr]) {
      stream.on('data', (data: Buffer) => {
        this.#output = (this.#output + data.toString('latin1')).slice(-OUTPUT_MAX);
      });
    }
    this.#ended = once(this.#child, 'exit').then(([code]) => code as number | null);
    // Begun at once: a line that is printed before anybody looks would be lost.
    this.#ready = waitReady(
      service,
      { stdout, stderr, ended: this.#ended },
      {
        timeoutMs: READY_TIMEOUT_MS,
        output: () => `${this.#output}\nthe daemon: ${worker.printed}`,
      },
    );
    this.#ready.catch(() => {});
  }

  /** Ms from the command to ready. */
  async readyMs(): Promise<number> {
    return (await this.#ready) - this.startedAt;
  }

  /** Asks it to end, and waits until it has. A third SIGTERM kills the container. */
  async end(): Promise<void> {
    const stop = new AbortController();
    const late = sleep(END_TIMEOUT_MS, true, { signal: stop.signal }).catch(() => false);
    for (const graceMs of [10_000, 2_000, END_TIMEOUT_MS]) {
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) break;
      this.#child.kill('SIGTERM');
      const grace = sleep(graceMs, undefined, { signal: stop.signal }).catch(() => undefined);
      await Promise.race([this.#ended, late, grace]);
    }
    stop.abort();
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      throw new Error(`${this.service.name} does not end`);
    }
  }
}
