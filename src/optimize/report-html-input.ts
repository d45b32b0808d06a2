// What the report's page draws, put together from all traces at hand.
import { imageKey, type Tracer } from '../trace/tracer.ts';
import type { ReportInput } from './report-html-data.ts';
import { type OrdersInput, simulateOrders } from './simulate.ts';

/** For people, in the order in which the page shows them. */
const ORDERS = [
  ['tree', 'tree order'],
  ['size', 'size order'],
  ['recorded', 'recorded order'],
  ['merged', 'merged order'],
] as const;

/** How many runs of an image there are, and in how many of them each file was seen. */
function runsOf(tracers: readonly Tracer[]): { total: number; byPath: Map<string, number> } {
  const byPath = new Map<string, number>();
  for (const { seq } of tracers) {
    for (const path of new Set(seq.map((item) => item.path))) {
      byPath.set(path, (byPath.get(path) ?? 0) + 1);
    }
  }
  return { total: tracers.length, byPath };
}

/**
 * The page of one run.
 * @param tracer  the run; where it is among `tracers` too, it counts once
 * @param tracers  all runs that are known, of this image and of others
 * @param image  what simulating needs: the image's files, how they travel, and over which line; without
 *   it (the image is not at hand) the page shows the recorded run alone
 * @throws FirstlightError `usage` where the line's bandwidth or round trip are no sensible numbers
 */
export function reportInput(
  tracer: Tracer,
  tracers: readonly Tracer[],
  image?: Pick<OrdersInput, 'target' | 'layout' | 'line'>,
): ReportInput {
  const all = [...new Set([tracer, ...tracers])];
  const own = all.filter((other) => imageKey(other) === imageKey(tracer));
  const runs = own.length > 1 ? { runs: runsOf(own) } : {};
  if (image === undefined) return { tracer, ...runs };
  const simulated = simulateOrders({ tracer, tracers: all, ...image });
  return {
    tracer,
    ...runs,
    line: image.line,
    orders: ORDERS.map(([key, name]) => ({ name, simulation: simulated[key] })),
  };
}
