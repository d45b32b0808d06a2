// A wide-area link on this machine: starts the relay (relay.cc), sets its length and rate, proves both
// before anything is measured over it, and runs programs at either end. What does not live here: what
// is measured.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import { promisify } from 'node:util';
import { compiled } from '../lib/compile.ts';

const run = promisify(execFile);

/** Length and rate of the link. */
export interface LinkSpec {
  rttMs: number;
  bitsPerSecond: number;
}

/** Counters of one direction since the relay was started. */
export interface DirectionCounters {
  packets: number;
  /** Of IP packets, headers included. */
  bytes: number;
  /** Packets that found the queue full. */
  dropped: number;
  /** TCP connections that were opened. */
  connects: number;
  max_queue_bytes: number;
  /** Packets that the receiving kernel did not take. */
  refused: number;
}

/** Counters of the relay; `up` is from client to server. */
export interface RelayStats {
  up: DirectionCounters;
  down: DirectionCounters;
  /** Processor time of the relay, and how long it has run. */
  cpu_s: number;
  wall_s: number;
}

/** What was measured of the link itself. */
export interface LinkCheck {
  rttMs: number;
  connectMs: number;
  mbitPerSecond: number;
  /** Share of one processor that the relay took meanwhile. */
  relayCpu: number;
}

interface End {
  netns: string;
  address: string;
}

/** Bytes of queue at most, where the bandwidth-delay product is less: some 64 packets. */
const QUEUE_MIN_BYTES = 96_000;
const PROBE_PORT = 9;
/** How far connect time may be over the round trip, and goodput under the rate (headers take 3.5%). */
const CONNECT_SLACK = 1.1;
const CONNECT_SLACK_MS = 3;
const GOODPUT_MIN = 0.9;
/** Under load the probe itself may be late: it is tried this often. */
const CHECKS = 3;

/** Path of a program of this directory, compiled. */
function build(name: 'relay' | 'wanprobe'): string {
  return compiled(new URL(`./${name}.cc`, import.meta.url));
}

/** Command line that runs a program in a network namespace. */
function inside(end: End, command: string, args: string[]): [string, string[]] {
  if (!/^\/proc\/\d+\/fd\/\d+$/.test(end.netns)) throw new Error(`no namespace: "${end.netns}"`);
  return ['nsenter', [`--net=${end.netns}`, '--', command, ...args]];
}

/** The link. Close it last: what runs at its ends loses its devices. */
export class Wan {
  readonly probe = build('wanprobe');
  readonly client: End;
  readonly server: End;
  readonly #relay: ChildProcess;
  readonly #lines: Interface;
  /** Answers come in the order of the commands. */
  readonly #answers: PromiseWithResolvers<string>[] = [];
  #spec: LinkSpec = { rttMs: 0, bitsPerSecond: 0 };
  #probeServer: ChildProcess | undefined;

  private constructor(relay: ChildProcess, lines: Interface, ends: { client: End; server: End }) {
    this.#relay = relay;
    this.#lines = lines;
    this.client = ends.client;
    this.server = ends.server;
    lines.on('line', (line) => this.#answers.shift()?.resolve(line));
    relay.once('exit', () => {
      for (const answer of this.#answers) answer.reject(new Error('the relay has ended'));
    });
  }

  /** Makes both namespaces and the link between them; needs root. */
  static async start(spec: LinkSpec): Promise<Wan> {
    const relay = spawn(build('relay'), [], { stdio: ['pipe', 'pipe', 'inherit'], detached: true });
    const lines = createInterface({ input: relay.stdout! });
    const [line] = (await Promise.race([
      once(lines, 'line'),
      once(relay, 'exit').then(([code]) => {
        throw new Error(`the relay ended with ${code}; it needs root and /dev/net/tun`);
      }),
    ])) as [string];
    const wan = new Wan(relay, lines, JSON.parse(line) as { client: End; server: End });
    await wan.set(spec);
    return wan;
  }

  get spec(): LinkSpec {
    return this.#spec;
  }

  async #ask<T>(command: string): Promise<T> {
    if (this.#relay.exitCode !== null) throw new Error('the relay has ended');
    const answer = Promise.withResolvers<string>();
    this.#answers.push(answer);
    this.#relay.stdin!.write(`${command}\n`);
    const value = JSON.parse(await answer.promise) as T & { error?: string };
    if (value.error !== undefined) throw new Error(`relay: ${command}: ${value.error}`);
    return value;
  }

  /** Sets length and rate for what is sent from now on. */
  async set(spec: LinkSpec): Promise<void> {
    const product = (spec.bitsPerSecond / 8 / 1000) * spec.rttMs;
    const queue = Math.round(Math.max(product, QUEUE_MIN_BYTES));
    await this.#ask(`set ${spec.rttMs * 1000} ${spec.bitsPerSecond} ${queue}`);
    this.#spec = spec;
  }

  stats(): Promise<RelayStats> {
    return this.#ask<RelayStats>('stats');
  }

  /** Command line of a program at the client's end. */
  atClient(command: string, args: string[]): [string, string[]] {
    return inside(this.client, command, args);
  }

  /** Command line of a program at the server's end. */
  atServer(command: string, args: string[]): [string, string[]] {
    return inside(this.server, command, args);
  }

  /** Starts the probe's sender; with a congestion control of its own where one is named. */
  async serveProbe(congestion?: string, port: number = PROBE_PORT): Promise<ChildProcess> {
    const args = ['serve', String(port), ...(congestion === undefined ? [] : [congestion])];
    const child = spawn(...this.atServer(this.probe, args), {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await Promise.race([
      once(child.stdout!, 'data'),
      once(child, 'exit').then(([code]) => {
        throw new Error(`the probe's sender ended with ${code}`);
      }),
    ]);
    return child;
  }

  /** Fetches bytes from a probe's sender; `open` and `warm` connections rest `idleMs` before. */
  async fetchProbe(
    bytes: number,
    connections: number,
    kind: 'cold' | 'open' | 'warm',
    options: { warmBytes?: number; idleMs?: number; port?: number } = {},
  ): Promise<{ connect_ms: number; ms: number; late_bytes_per_s: number }> {
    const { warmBytes = 0, idleMs = 0, port = PROBE_PORT } = options;
    const args = [
      ...['fetch', this.server.address, String(port), String(bytes)],
      ...[String(connections), kind, String(warmBytes), String(idleMs)],
    ];
    const { stdout } = await run(...this.atClient(this.probe, args));
    return JSON.parse(stdout);
  }

  /**
   * Proves that the link is what it is set to.
   * @throws where connect time is not the round trip, or bulk goodput not near the rate
   */
  async check(): Promise<LinkCheck> {
    this.#probeServer ??= await this.serveProbe();
    const { rttMs, bitsPerSecond } = this.#spec;
    let last: LinkCheck | undefined;
    for (let i = 0; i < CHECKS; i++) {
      last = await this.#checkOnce();
      const connects =
        last.connectMs >= rttMs && last.connectMs <= rttMs * CONNECT_SLACK + CONNECT_SLACK_MS;
      if (connects && last.mbitPerSecond * 1e6 >= bitsPerSecond * GOODPUT_MIN) return last;
    }
    throw new Error(`the link is not what it is set to: ${JSON.stringify(last)}`);
  }

  async #checkOnce(): Promise<LinkCheck> {
    const { rttMs, bitsPerSecond } = this.#spec;
    const before = await this.stats();
    // Two seconds of the line beyond some twenty round trips of slow start.
    const bytes = Math.round((bitsPerSecond / 8) * (2 + (rttMs * 10) / 1000));
    const { connect_ms, late_bytes_per_s } = await this.fetchProbe(bytes, 1, 'cold');
    const after = await this.stats();
    return {
      rttMs,
      connectMs: connect_ms,
      mbitPerSecond: (late_bytes_per_s * 8) / 1e6,
      relayCpu: (after.cpu_s - before.cpu_s) / (after.wall_s - before.wall_s),
    };
  }

  /** Ends the relay; the namespaces go with the last process in them. */
  async close(): Promise<void> {
    if (this.#probeServer?.exitCode === null) this.#probeServer.kill('SIGKILL');
    if (this.#relay.exitCode !== null || this.#relay.signalCode !== null) return;
    const gone = once(this.#relay, 'exit');
    this.#relay.stdin!.end();
    await gone;
    this.#lines.close();
  }
}

/** A link check in one line. */
export function describeCheck(check: LinkCheck): string {
  return (
    `link ${check.rttMs} ms: connect ${check.connectMs.toFixed(1)} ms, ` +
    `goodput ${check.mbitPerSecond.toFixed(1)} Mbit/s, relay ${(check.relayCpu * 100).toFixed(0)}% of a CPU`
  );
}
