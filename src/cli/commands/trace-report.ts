// `firstlight trace report [TRACE...]`: sends runs to the server, or with --html draws one as a page.
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { API, type ImageDetail, type TraceReceipt } from '../../delta/protocol.ts';
import { exitCode, FirstlightError, toFirstlightError } from '../../errors/errors.ts';
import { type ReportInput, renderReport } from '../../optimize/report-html.ts';
import type { StoredTrace } from '../../trace/files.ts';
import { tracerChunks } from '../../trace/format.ts';
import { imageKey, type Tracer } from '../../trace/tracer.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { errorJson } from '../print.ts';
import { imagePath } from '../server-client.ts';
import { ask, readToken } from '../token.ts';
import { type Prediction, predict } from '../traced-image.ts';
import { findTrace, findTraces, noteBroken } from '../traces.ts';
import { writeFileWhole } from '../write-file.ts';

const POLL_MS = 200;

interface Sent {
  trace: StoredTrace;
  receipt: TraceReceipt;
}

async function send(context: Context, trace: StoredTrace): Promise<TraceReceipt> {
  const body = await ask(context, API.traces, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: Readable.from(tracerChunks(trace.tracer)),
  });
  return (await body.json()) as TraceReceipt;
}

/** Waits until the order of an image is in force; one that goes meanwhile is not waited for. */
async function waitFor(context: Context, image: string): Promise<void> {
  for (;;) {
    try {
      const body = await ask(context, imagePath(API.images, image));
      const { order } = (await body.json()) as ImageDetail;
      if (order.settled) return;
    } catch (error) {
      if (error instanceof FirstlightError && error.kind === 'not-found') return;
      throw error;
    }
    await sleep(POLL_MS, undefined, { signal: context.signal });
  }
}

async function sendAll(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<number | undefined> {
  const { traces, broken } = await findTraces(context, args);
  noteBroken(context, broken);
  // One that cannot be read is no failure of any run.
  await readToken(context.settings);
  const sent: Sent[] = [];
  const failed: { trace: StoredTrace; error: FirstlightError }[] = [];
  for (const trace of traces) {
    try {
      const receipt = await send(context, trace);
      sent.push({ trace, receipt });
      if (!context.json) {
        const images = `${receipt.images.length} ${receipt.images.length === 1 ? 'image' : 'images'}`;
        const what = receipt.added ? `orders ${images}` : 'was reported before';
        context.print(`${trace.id}  ${trace.tracer.image}  ${what}`);
      }
    } catch (thrown) {
      context.signal.throwIfAborted();
      const error = toFirstlightError(thrown);
      failed.push({ trace, error });
      // Of these the next one would hear the same.
      if (['unreachable', 'unauthorized', 'permission'].includes(error.kind)) break;
      context.note(`firstlight: ${trace.id}: ${error.line}`);
    }
  }
  if (options.wait === true) {
    const images = new Set(sent.flatMap(({ receipt }) => receipt.images));
    for (const image of images) await waitFor(context, image);
  }
  if (context.json) {
    context.printJson({
      reported: sent.map(({ trace, receipt }) => ({ file: trace.path, ...receipt })),
      failed: failed.map(({ trace, error }) => ({ file: trace.path, error: errorJson(error) })),
    });
  } else if (traces.length === 0) {
    context.note('no run has been recorded here');
  }
  // What could be sent has been; the exit code is that of what could not.
  const [first] = failed;
  if (first === undefined) return undefined;
  // For programs it stands in the one object already.
  if (context.json) return exitCode(first.error);
  const { kind, message, hint } = first.error;
  const rest = failed.length === 1 ? '' : `, and ${failed.length - 1} more`;
  throw new FirstlightError(kind, `${first.trace.id} was not taken: ${message}${rest}`, {
    ...(hint === undefined ? {} : { hint }),
    cause: first.error,
  });
}

/** In how many runs of the image each file was seen. */
function runsOf(tracer: Tracer, tracers: readonly Tracer[]): ReportInput['runs'] {
  const own = tracers.filter((other) => imageKey(other) === imageKey(tracer));
  const byPath = new Map<string, number>();
  for (const { seq } of own) {
    for (const path of new Set(seq.map((item) => item.path))) {
      byPath.set(path, (byPath.get(path) ?? 0) + 1);
    }
  }
  return own.length < 2 ? undefined : { total: own.length, byPath };
}

async function draw(
  context: Context,
  arg: string | undefined,
  options: OptionValues,
  path: string,
): Promise<void> {
  const trace = await findTrace(context, arg);
  let prediction: Prediction | undefined;
  try {
    prediction = await predict(context, trace, options);
  } catch (error) {
    context.signal.throwIfAborted();
    const { kind, message } = toFirstlightError(error);
    if (kind !== 'not-found' && kind !== 'unreachable') throw error;
    context.note(`firstlight: the page has no predictions: ${message}`);
  }
  const runs = prediction && runsOf(trace.tracer, prediction.tracers);
  const page = renderReport({
    tracer: trace.tracer,
    ...(runs === undefined ? {} : { runs }),
    ...(prediction === undefined
      ? {}
      : {
          line: prediction.line,
          orders: [
            { name: 'tree order', simulation: prediction.simulations.tree },
            { name: 'smallest first', simulation: prediction.simulations.size },
            { name: 'order of this run', simulation: prediction.simulations.recorded },
            { name: 'order of all runs', simulation: prediction.simulations.merged },
          ],
        }),
  });
  await writeFileWhole(path, page);
  if (context.json) context.printJson({ html: path, file: trace.path });
  else context.print(path);
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<number | undefined> {
  const html = options.html as string | undefined;
  if (html === undefined) return sendAll(context, args, options);
  if (args.length > 1) {
    throw new FirstlightError('usage', `--html draws one run, not ${args.length}`, {
      hint: 'name one TRACE',
    });
  }
  await draw(context, args[0], options, html);
  return undefined;
}
