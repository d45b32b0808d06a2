// The image of a recorded run, as predictions need it: its files, from this worker's store or from the
// server, and how large its bundle is.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader, parsePreamble } from '../delta/bundle-decode.ts';
import { API, type ImageDetail } from '../delta/protocol.ts';
import { Toc } from '../delta/toc.ts';
import { checkToc } from '../delta/toc-check.ts';
import { filesOfToc } from '../delta/toc-files.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { LayoutOptions } from '../optimize/layout.ts';
import { type ImageFiles, mapTracer } from '../optimize/match.ts';
import type { RankTarget } from '../optimize/ranks.ts';
import { type OrdersInput, type SimulationOptions, simulateOrders } from '../optimize/simulate.ts';
import { parseRate } from '../serve/rate.ts';
import { isDigest, Layout } from '../store/layout.ts';
import type { StoredTrace } from '../trace/files.ts';
import type { Tracer } from '../trace/tracer.ts';
import type { OptionValues } from './commands.ts';
import type { Context } from './context.ts';
import { imagePath } from './server-client.ts';
import { parseDuration } from './settings.ts';
import { ask } from './token.ts';
import { localTraces } from './traces.ts';

/** Where the server does not say: what an image of programs compresses to, and header bytes of a row. */
const USUAL_RATIO = 0.4;
const USUAL_ROW_BYTES = 16;

/** An image that runs can be predicted for. */
export interface TracedImage {
  target: RankTarget;
  layout: LayoutOptions;
  /** False where the sizes of the bundle are estimates. */
  measured: boolean;
}

/** The network that --bandwidth and --rtt describe. @throws 'usage' */
export function lineOf(options: OptionValues): SimulationOptions {
  const bits = parseRate((options.bandwidth as string | undefined) ?? '100mbit');
  const rtt = (options.rtt as string | undefined) ?? '50ms';
  const roundTripMs = parseDuration(rtt);
  if (bits === undefined) {
    throw new FirstlightError('usage', '--bandwidth is "off"', {
      hint: 'write 100mbit or 12.5MB/s',
    });
  }
  if (roundTripMs === undefined) {
    throw new FirstlightError('usage', `--rtt is "${rtt}"`, { hint: 'write a time such as 50ms' });
  }
  return {
    bytesPerSecond: bits / 8,
    roundTripMs,
    ...(options['in-order'] === true ? { outOfOrder: false } : {}),
    ...(options.warm === true ? { warm: true } : {}),
  };
}

/** The first `bytes` bytes of a body; the rest is not waited for. */
async function firstBytes(body: Readable, bytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of body) {
    chunks.push(chunk as Buffer);
    length += (chunk as Buffer).length;
    if (length >= bytes) break;
  }
  body.destroy();
  return Buffer.concat(chunks).subarray(0, bytes);
}

/** The tree of an image from the header of its bundle. */
async function tocFromServer(context: Context, digest: string): Promise<Toc> {
  const part = async (from: number, bytes: number) => {
    const body = await ask(context, API.delta, {
      query: { image: digest },
      headers: { range: `bytes=${from}-${from + bytes - 1}` },
    });
    return firstBytes(body, bytes);
  };
  const preamble = await part(0, PREAMBLE_BYTES);
  const { headerBytes } = parsePreamble(preamble);
  return decodeHeader(preamble, await part(PREAMBLE_BYTES, headerBytes)).toc;
}

/** Tree and known digests of an image in this worker's store; undefined where it is not there. */
async function fromStore(
  context: Context,
  digest: string,
): Promise<{ toc: Toc; digests: Buffer } | undefined> {
  if (!isDigest(digest)) return undefined;
  const directory = new Layout(context.settings.text('root')).imageDirectory(digest);
  try {
    const bytes = await readFile(join(directory, 'toc'));
    checkToc(bytes);
    return { toc: new Toc(bytes), digests: await readFile(join(directory, 'contents')) };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw toFirstlightError(error);
  }
}

async function inspect(context: Context, ref: string): Promise<ImageDetail> {
  const body = await ask(context, imagePath(API.images, ref));
  return (await body.json()) as ImageDetail;
}

/**
 * The image that a run is of, or another version of it.
 * @param named  another image than the run's own
 * @throws 'not-found' or 'unreachable' where neither this worker nor the server has it
 */
export async function tracedImage(
  context: Context,
  tracer: Tracer,
  named: string | undefined,
): Promise<TracedImage> {
  const ref = named ?? tracer.digest ?? tracer.image;
  const stored = await fromStore(context, ref);
  let detail: ImageDetail | undefined;
  try {
    detail = await inspect(context, ref);
  } catch (error) {
    context.signal.throwIfAborted();
    // With the files at hand, only the sizes are missing, and those can be estimated.
    if (stored === undefined) throw error;
  }
  const digest = detail?.digest ?? ref;
  const known = stored ?? (await fromStore(context, digest));
  const toc = known?.toc ?? (await tocFromServer(context, digest));
  const { bundleBytes, headerBytes, bytes = 0 } = detail ?? {};
  const measured = bundleBytes !== undefined && headerBytes !== undefined && bytes > 0;
  const platform = detail?.platform ?? tracer.platform;
  return {
    target: {
      digest,
      image: named === undefined || isDigest(named) ? tracer.image : named,
      ...(platform === undefined ? {} : { platform }),
      files: filesOfToc(toc, known?.digests ?? Buffer.alloc(0)),
    },
    layout: {
      headerBytes: headerBytes ?? PREAMBLE_BYTES + toc.rows * USUAL_ROW_BYTES,
      ratio: measured ? (bundleBytes - headerBytes) / bytes : USUAL_RATIO,
    },
    measured,
  };
}

/** The run as one of the image that is predicted for. */
async function asRunOf(context: Context, tracer: Tracer, target: RankTarget): Promise<Tracer> {
  if (tracer.digest === target.digest) return tracer;
  const own = tracer.digest === undefined ? undefined : await fromStore(context, tracer.digest);
  const from: ImageFiles | undefined =
    own === undefined ? undefined : filesOfToc(own.toc, own.digests);
  return mapTracer(tracer, from, target.files).tracer;
}

/** A prediction, and what it was made of. */
export interface Prediction {
  /** The run that was replayed. */
  tracer: Tracer;
  simulations: ReturnType<typeof simulateOrders>;
  image: TracedImage;
  line: SimulationOptions;
  /** All runs that the merged order comes from. */
  tracers: readonly Tracer[];
}

/** Simulates a run under every order. @throws as {@link tracedImage}, {@link lineOf} */
export async function predict(
  context: Context,
  trace: StoredTrace,
  options: OptionValues,
): Promise<Prediction> {
  const line = lineOf(options);
  const image = await tracedImage(context, trace.tracer, options.image as string | undefined);
  const { traces } = await localTraces(context);
  const others = traces.filter(({ id }) => id !== trace.id).map(({ tracer }) => tracer);
  const tracers = [...others, trace.tracer];
  const tracer =
    options.image === undefined ? trace.tracer : await asRunOf(context, trace.tracer, image.target);
  const input: OrdersInput = { tracer, tracers, target: image.target, layout: image.layout, line };
  return { tracer, simulations: simulateOrders(input), image, line, tracers };
}
