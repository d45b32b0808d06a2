// `firstlight trace ls`: the recorded runs of this worker, or those that the server has.
import { API, type TraceSummary } from '../../delta/protocol.ts';
import { formatTime } from '../../trace/time.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { formatMs, formatTable } from '../print.ts';
import { ask } from '../token.ts';
import { durationMs, localTraces, noteBroken, waitedMs } from '../traces.ts';

const HEAD = ['ID', 'GROUP', 'IMAGE', 'START', 'TIME', 'FILES'];

function shownTime(iso: string): string {
  return iso.replace('T', ' ').replace(/(\.\d*)?Z$/, '');
}

async function listReported(context: Context): Promise<void> {
  const body = await ask(context, API.traces);
  const traces = (await body.json()) as TraceSummary[];
  if (context.json) {
    context.printJson(traces);
    return;
  }
  const rows = traces.map((trace) => [
    trace.id.slice(0, 16),
    trace.group,
    trace.image,
    shownTime(trace.start),
    formatMs(trace.durationMs),
    String(trace.files),
  ]);
  context.print(formatTable([HEAD, ...rows]));
}

export async function run(
  context: Context,
  _args: string[],
  options: OptionValues,
): Promise<undefined> {
  if (options.reported === true) {
    await listReported(context);
    return undefined;
  }
  const { traces, broken } = await localTraces(context);
  if (context.json) {
    context.printJson({
      traces: traces.map(({ id, path, tracer }) => ({
        id,
        path,
        group: tracer.group,
        image: tracer.image,
        ...(tracer.digest === undefined ? {} : { digest: tracer.digest }),
        ...(tracer.platform === undefined ? {} : { platform: tracer.platform }),
        start: formatTime(tracer.startNs),
        durationMs: durationMs(tracer),
        files: tracer.seq.length,
        waitedMs: waitedMs(tracer),
        lost: tracer.lost ?? 0,
        recovered: tracer.recovered ?? false,
      })),
      broken: broken.map(({ path, error }) => ({ path, error: error.line })),
    });
    return undefined;
  }
  const rows = traces.map(({ id, tracer }) => [
    id,
    tracer.group,
    tracer.image,
    shownTime(formatTime(tracer.startNs)),
    formatMs(durationMs(tracer)),
    String(tracer.seq.length),
    formatMs(waitedMs(tracer)),
  ]);
  context.print(formatTable([[...HEAD, 'WAITED'], ...rows]));
  noteBroken(context, broken);
  return undefined;
}
