// `firstlight trace show [TRACE]`: what one run read, when, and how long it waited.
import { shownPath } from '../../optimize/report-html-data.ts';
import { formatTracer } from '../../trace/format.ts';
import { formatTime } from '../../trace/time.ts';
import type { TraceItem, Tracer } from '../../trace/tracer.ts';
import type { Context } from '../context.ts';
import { formatBytes, formatMs, formatTable } from '../print.ts';
import { durationMs, findTrace, waitedMs } from '../traces.ts';

function at(ns: number): string {
  return `${(ns / 1e6).toFixed(1)} ms`;
}

function waited(ns: number): string {
  return ns === 0 ? '-' : at(ns);
}

function rowsOf(item: TraceItem): string[][] {
  const size = item.sizeBytes === undefined ? '-' : formatBytes(item.sizeBytes);
  const ranges = (item.ranges ?? []).map((range) => [
    at(range.accessNs),
    waited(range.waitNs),
    formatBytes(range.lengthBytes),
    `  from ${formatBytes(range.offsetBytes)} on`,
  ]);
  return [[at(item.accessNs), waited(item.waitNs), size, shownPath(item.path)], ...ranges];
}

function headOf(tracer: Tracer): string[] {
  const facts = [
    `${tracer.image}  group ${tracer.group}  ${formatTime(tracer.startNs)}`,
    `${tracer.seq.length} files in ${formatMs(durationMs(tracer))}, waits of ${formatMs(waitedMs(tracer))} in all`,
  ];
  if (tracer.digest !== undefined) facts.push(tracer.digest);
  if (tracer.lost !== undefined) facts.push(`${tracer.lost} events could not be recorded`);
  if (tracer.recovered === true) facts.push('the recorder was ended before it had finished');
  return facts;
}

export async function run(context: Context, args: string[]): Promise<undefined> {
  const { tracer } = await findTrace(context, args[0]);
  if (context.json) {
    context.printJson(JSON.parse(formatTracer(tracer)));
    return undefined;
  }
  for (const line of headOf(tracer)) context.print(line);
  context.print('');
  const rows = tracer.seq.flatMap(rowsOf);
  context.print(formatTable([['AT', 'WAITED', 'SIZE', 'FILE'], ...rows]));
  return undefined;
}
