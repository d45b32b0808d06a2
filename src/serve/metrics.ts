// What the server counts, in Prometheus' terms and naming. One registry for each server, so that two
// of them in one process do not mix.
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export class Metrics {
  readonly registry = new Registry();
  readonly requests = this.#counter(
    'firstlight_http_requests_total',
    'HTTP requests answered',
    'method',
    'route',
    'status',
  );
  readonly requestSeconds = new Histogram({
    name: 'firstlight_http_request_duration_seconds',
    help: 'Time from a request to the end of its answer',
    labelNames: ['route'] as const,
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly sentBytes = this.#counter('firstlight_bundle_sent_bytes_total', 'Bytes of bundles sent');
  readonly encodes = this.#counter('firstlight_bundles_computed_total', 'Bundles computed');
  readonly encodeSeconds = new Histogram({
    name: 'firstlight_bundle_compute_seconds',
    help: 'Time to compute a bundle',
    buckets: SECONDS,
    registers: [this.registry],
  });
  readonly patchEncodes = this.#counter(
    'firstlight_patch_bundles_computed_total',
    'Bundles with patches computed, in the background',
  );
  readonly patchSeconds = this.#counter(
    'firstlight_patch_bundle_compute_seconds_total',
    'Time spent computing bundles with patches',
  );
  readonly patchesRefused = this.#counter(
    'firstlight_patch_bundles_refused_total',
    'Answers without patches because too many bundles with patches waited to be computed',
  );
  readonly intakes = this.#counter(
    'firstlight_intakes_total',
    'Images taken in; result: ok or the kind of error',
    'kind',
    'result',
  );
  readonly traces = this.#counter(
    'firstlight_traces_total',
    'Traces reported; result: ok, known or the kind of error',
    'result',
  );
  readonly reorders = this.#counter(
    'firstlight_orders_total',
    'Looks at the order of an image; result: changed, same or failed',
    'result',
  );
  readonly receivedBytes = this.#counter(
    'firstlight_intake_received_bytes_total',
    'Bytes uploaded to intakes',
  );
  readonly errors = this.#counter('firstlight_errors_total', 'Requests that failed', 'kind');
  readonly refused = this.#counter(
    'firstlight_refused_requests_total',
    'Requests refused; reason: missing or unknown token, or one that is not for it (scope)',
    'reason',
  );
  readonly transfers = new Gauge({
    name: 'firstlight_bundle_transfers',
    help: 'Bundle transfers under way',
    registers: [this.registry],
  });

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  /** Shows how many bundles with patches are being computed, or wait for it. */
  watchPatches(pending: () => number): void {
    new Gauge({
      name: 'firstlight_patch_bundles_pending',
      help: 'Bundles with patches that are being computed or wait for it',
      registers: [this.registry],
      collect() {
        this.set(pending());
      },
    });
  }

  #counter<const L extends string>(name: string, help: string, ...labelNames: L[]): Counter<L> {
    return new Counter<L>({ name, help, labelNames, registers: [this.registry] });
  }
}
