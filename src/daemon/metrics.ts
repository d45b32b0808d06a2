// What the daemon counts, in Prometheus' terms and naming, and the address where it is read. The figures of
// mounts and transfers are taken from them when somebody asks. What does not live here: what containerd's
// calls count (snapshots/metrics.ts), which stands in the same registry.
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Counter, collectDefaultMetrics, Gauge, type Registry } from 'prom-client';
import { FirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { SessionStats } from '../native/index.ts';

/** One mount, as far as it is counted. */
export interface CountedMount {
  /** Names it as long as the process lives. */
  id: string;
  /** Who asked for it. */
  face: 'command' | 'containerd';
  stats: SessionStats | undefined;
  /** Requests that a writable tree of ours took. */
  upcalls: number;
  /** Requests that wait for contents now. */
  waiting: number;
  /** Image that it shows. */
  image: string;
}

/** What is counted beside the mounts. */
export interface CountedTransfers {
  receivedBytes(): number;
  /** Open images by the state of their transfer. */
  states(): Record<string, number>;
}

/** Figures of ended mounts stay in the sums: a counter that falls is read as a restart. */
class Sums {
  readonly #last = new Map<string, number[]>();

  /** How much each figure of `id` has grown since it was last given. */
  growth(id: string, now: number[]): number[] {
    const last = this.#last.get(id) ?? [];
    this.#last.set(id, now);
    return now.map((value, i) => Math.max(0, value - (last[i] ?? 0)));
  }

  /** Forgets those that are no more. */
  keep(ids: Set<string>): void {
    for (const id of this.#last.keys()) if (!ids.has(id)) this.#last.delete(id);
  }
}

export class DaemonMetrics {
  readonly registry: Registry;
  readonly #mounts: Gauge<'face'>;
  readonly #waiting: Gauge;
  readonly #transfers: Gauge<'state'>;
  readonly #counters: Counter[];
  readonly #sums = new Sums();

  /** @param read  the mounts there are now */
  constructor(registry: Registry, read: () => CountedMount[], transfers: CountedTransfers) {
    this.registry = registry;
    collectDefaultMetrics({ register: registry });
    const registers = [registry];
    this.#mounts = new Gauge({
      name: 'firstlight_mounts',
      help: 'Images and trees that are mounted, by who asked for them',
      labelNames: ['face'],
      registers,
      collect: () => this.#collect(read()),
    });
    this.#waiting = new Gauge({
      name: 'firstlight_waiting_requests',
      help: 'Requests of the kernel that wait for contents now',
      registers,
    });
    this.#transfers = new Gauge({
      name: 'firstlight_transfers',
      help: 'Images that are open, by the state of their transfer',
      labelNames: ['state'],
      registers,
      collect: () => {
        for (const [state, n] of Object.entries(transfers.states())) {
          this.#transfers.set({ state }, n);
        }
      },
    });
    const counter = (name: string, help: string) => new Counter({ name, help, registers });
    this.#counters = [
      counter('firstlight_lookups_total', 'Lookups answered'),
      counter('firstlight_opens_total', 'Files opened'),
      counter('firstlight_passthrough_opens_total', 'Files opened that the kernel reads itself'),
      counter('firstlight_reads_total', 'Reads answered'),
      counter('firstlight_read_bytes_total', 'Bytes of reads answered'),
      counter('firstlight_waits_total', 'Requests that had to wait for contents'),
      counter('firstlight_wait_seconds_total', 'Time that requests waited for contents'),
      counter('firstlight_wait_timeouts_total', 'Requests given up because contents did not come'),
      counter('firstlight_upcalls_total', 'Requests that writable trees answered themselves'),
    ];
    const received: Counter = new Counter({
      name: 'firstlight_received_bytes_total',
      help: 'Bytes that came from the delta server: headers and frames',
      registers,
      collect: () => {
        received.inc(this.#sums.growth('received', [transfers.receivedBytes()])[0] ?? 0);
      },
    });
  }

  #collect(mounts: CountedMount[]): void {
    this.#mounts.reset();
    for (const face of ['command', 'containerd'] as const) {
      this.#mounts.set({ face }, mounts.filter((mount) => mount.face === face).length);
    }
    const templates = new Map(mounts.map(({ image, waiting }) => [image, waiting]));
    this.#waiting.set([...templates.values()].reduce((sum, waiting) => sum + waiting, 0));
    for (const mount of mounts) this.#add(mount);
    this.#sums.keep(new Set(['received', ...mounts.map(({ id }) => id)]));
  }

  #add({ id, stats: s, upcalls }: CountedMount): void {
    if (s === undefined) return;
    const now = [
      ...[s.lookups, s.opens, s.passthroughOpens, s.reads, s.bytesRead],
      ...[s.waits, s.waitedMs / 1000, s.timeouts, upcalls],
    ];
    for (const [i, grown] of this.#sums.growth(id, now).entries()) this.#counters[i]?.inc(grown);
  }
}

/** Where the metrics can be read. */
export interface MetricsServer {
  /** Such as `http://127.0.0.1:9170`. */
  url: string;
  close(): Promise<void>;
}

/**
 * Serves `/metrics` and `/healthz`.
 * @param listen  HOST:PORT
 * @throws FirstlightError `usage`, `busy`
 */
export async function serveMetrics(
  listen: string,
  registry: Registry,
  log: Logger,
): Promise<MetricsServer> {
  const match = /^(?:\[(.+)\]|([^:]*)):(\d{1,5})$/.exec(listen);
  if (match === null || Number(match[3]) > 65_535) {
    throw new FirstlightError('usage', `"${listen}" is no address to listen on`, {
      hint: 'write --metrics HOST:PORT, such as 127.0.0.1:9170',
    });
  }
  const server = createServer((request, response) => {
    if (request.url === '/healthz') {
      response.end('ok\n');
    } else if (request.url === '/metrics') {
      registry.metrics().then(
        (text) => response.setHeader('content-type', registry.contentType).end(text),
        (error: unknown) => {
          log.error({ err: error }, 'the metrics could not be read');
          response.writeHead(500).end();
        },
      );
    } else {
      response.writeHead(404).end();
    }
  });
  const host = match[1] ?? (match[2] === '' ? '0.0.0.0' : match[2]);
  await listening(server, Number(match[3]), host ?? '127.0.0.1', listen);
  const { port } = server.address() as AddressInfo;
  const shown = host?.includes(':') ? `[${host}]` : host;
  return {
    url: `http://${shown}:${port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function listening(server: Server, port: number, host: string, listen: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const inUse = error.code === 'EADDRINUSE';
      const why = inUse ? `${listen} is in use` : `cannot listen on ${listen}: ${error.message}`;
      const hint = 'choose another address with --metrics';
      reject(new FirstlightError(inUse ? 'busy' : 'usage', why, { hint, cause: error }));
    });
    server.listen(port, host, resolve);
  });
}
