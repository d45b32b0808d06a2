// What the snapshotter counts, in Prometheus' terms and naming. Gauges are read from their source when
// somebody asks. What does not live here: the address they are served at (daemon/).
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

const SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export class SnapshotMetrics {
  readonly registry: Registry;
  readonly seconds: Histogram<'operation'>;
  readonly failures: Counter<'operation' | 'code'>;
  readonly pulls: Counter<'way' | 'reason'>;
  readonly lowerTrees: Counter<'way' | 'reason'>;
  readonly savedBytes: Counter;
  readonly waitSeconds: Histogram;
  readonly snapshots: Gauge<'kind'>;
  /** Number of snapshots by kind, asked when the metrics are read. */
  count: (() => Promise<Record<string, number>>) | undefined;

  constructor(registry = new Registry()) {
    this.registry = registry;
    const registers = [registry];
    this.seconds = new Histogram({
      name: 'firstlight_snapshot_operation_duration_seconds',
      help: 'Time that a call of the snapshots service took',
      labelNames: ['operation'],
      buckets: SECONDS,
      registers,
    });
    this.failures = new Counter({
      name: 'firstlight_snapshot_operation_failures_total',
      help: "Calls that failed, by gRPC code; AlreadyExists of a lazy layer is containerd's way and not counted",
      labelNames: ['operation', 'code'],
      registers,
    });
    this.pulls = new Counter({
      name: 'firstlight_layers_total',
      help: 'Layers of images that were pulled: lazily, or in the ordinary way for a reason',
      labelNames: ['way', 'reason'],
      registers,
    });
    this.lowerTrees = new Counter({
      name: 'firstlight_lower_trees_total',
      help: 'Trees of lower layers that an ordinary image shares with a lazy one: from the delta server, or merged from the registry for a reason',
      labelNames: ['way', 'reason'],
      registers,
    });
    this.waitSeconds = new Histogram({
      name: 'firstlight_wait_duration_seconds',
      help: 'How long reads of containers waited for contents, as the daemon sees it',
      buckets: SECONDS,
      registers,
    });
    this.savedBytes = new Counter({
      name: 'firstlight_saved_bytes_total',
      help: 'Bytes of layers that an ordinary pull would have downloaded and a lazy one did not',
      registers,
    });
    this.snapshots = new Gauge({
      name: 'firstlight_snapshots',
      help: 'Snapshots by kind; lazy: committed ones whose tree comes from the delta server',
      labelNames: ['kind'],
      registers,
      collect: async () => {
        for (const [kind, n] of Object.entries((await this.count?.()) ?? {})) {
          this.snapshots.set({ kind }, n);
        }
      },
    });
  }
}
