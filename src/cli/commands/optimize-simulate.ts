// `firstlight optimize simulate [TRACE]`: when each wait of a run would end under four orders.
import type { OrderName } from '../../optimize/layout.ts';
import { shownPath } from '../../optimize/report-html-data.ts';
import type { Simulation } from '../../optimize/simulate.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { formatBytes, formatMs, formatTable } from '../print.ts';
import { type Prediction, predict } from '../traced-image.ts';
import { findTrace } from '../traces.ts';

const ORDERS: OrderName[] = ['tree', 'size', 'recorded', 'merged'];

/** One wanted file, or part of one, under every order. */
interface Row {
  path: string;
  part?: number;
  /** When it was wanted, and had, by order; ms since the request for the bundle. */
  orders: Record<OrderName, { wantedMs: number; endedMs: number }>;
}

function each<T>(make: (order: OrderName) => T): Record<OrderName, T> {
  return Object.fromEntries(ORDERS.map((order) => [order, make(order)])) as Record<OrderName, T>;
}

function rowsOf({ simulations }: Prediction): Row[] {
  // Every order replays the same wants in the same order.
  return simulations.tree.waits.map(({ path, part }, i) => ({
    path,
    ...(part === undefined ? {} : { part }),
    orders: each((order) => {
      const { wantedMs, endedMs } = simulations[order].waits[i]!;
      return { wantedMs, endedMs };
    }),
  }));
}

function isWaitedFor({ orders }: Row): boolean {
  return ORDERS.some((order) => orders[order].endedMs > orders[order].wantedMs);
}

function printRows(context: Context, rows: readonly Row[]): void {
  const lines = rows.map((row) => [
    ...ORDERS.map((order) => {
      const { wantedMs, endedMs } = row.orders[order];
      return endedMs > wantedMs ? formatMs(endedMs) : '-';
    }),
    shownPath(row.path) + (row.part === undefined ? '' : `  from ${row.part} MiB on`),
  ]);
  context.print(
    formatTable([[...ORDERS.map((order) => order.toUpperCase()), 'WAIT FOR'], ...lines]),
  );
}

function printTotals(context: Context, { simulations }: Prediction): void {
  const line = (name: string, value: (simulation: Simulation) => string) => [
    ...ORDERS.map((order) => value(simulations[order])),
    name,
  ];
  context.print(
    formatTable([
      [...ORDERS.map((order) => order.toUpperCase()), ''],
      line('everything read', ({ doneMs }) => formatMs(doneMs)),
      line('stood still', ({ blockedMs }) => formatMs(blockedMs)),
      line('all waits together', ({ summedWaitMs }) => formatMs(summedWaitMs)),
      line('received by then', ({ bytesWhenDone }) => formatBytes(bytesWhenDone)),
      line('frames fetched beside the stream', ({ fetched }) => String(fetched)),
      line('last byte', ({ lastByteMs }) => formatMs(lastByteMs)),
    ]),
  );
}

function jsonOf(prediction: Prediction, rows: readonly Row[]): unknown {
  const { tracer, image, line, simulations, tracers } = prediction;
  return {
    image: tracer.image,
    digest: image.target.digest,
    ...line,
    headerBytes: image.layout.headerBytes,
    ratio: image.layout.ratio,
    measured: image.measured,
    runs: tracers.length,
    orders: each((order) => {
      const { waits: _, ...totals } = simulations[order];
      return totals;
    }),
    waits: rows.map((row) => ({ ...row, path: shownPath(row.path) })),
  };
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const prediction = await predict(context, await findTrace(context, args[0]), options);
  const rows = rowsOf(prediction);
  if (context.json) {
    context.printJson(jsonOf(prediction, rows));
    return undefined;
  }
  const { tracer, line, image } = prediction;
  const rate = `${(line.bytesPerSecond * 8) / 1e6} Mbit/s`;
  context.print(
    `${tracer.image}  ${rows.length} reads  ${rate}, ${line.roundTripMs} ms round trip`,
  );
  if (!image.measured) context.note('firstlight: the size of the bundle is an estimate');
  context.print('times are since the request for the image\n');
  printRows(context, options.all === true ? rows : rows.filter(isWaitedFor));
  context.print('');
  printTotals(context, prediction);
  return undefined;
}
