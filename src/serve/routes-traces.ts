// /v1/traces: report, list, fetch and remove traces.
import { promisify } from 'node:util';
import { zstdDecompress } from 'node:zlib';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import PQueue from 'p-queue';
import { API, type TraceReceipt, type TraceSummary } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import { TRACE_MAX_BYTES } from '../trace/tracer.ts';
import type { TraceRecord } from './catalog.ts';
import { clientSignal, dropRest } from './client.ts';
import { clientError } from './error-body.ts';
import type { ImageStore } from './image-store.ts';
import type { Metrics } from './metrics.ts';
import { bodyPath, receiveBody, type UploadLimits } from './upload.ts';
import { noQuery } from './validate.ts';

/** What is to be done about bodies that are traces. */
export const TRACE_HINTS = {
  tooLarge: 'record a shorter run',
  empty: 'send a trace file as the body',
};

/** Reports that are received at the same time; the others wait before their body is read. */
const REPORTS_AT_ONCE = 8;
/** A report that is not there after this time makes room for another. */
const BODY_MS = 300_000;
const ID = /^[0-9a-f]{64}$/;

const decompress = promisify(zstdDecompress);

export interface TraceRoutesOptions {
  store: ImageStore;
  metrics: Metrics;
  upload: UploadLimits;
}

function summaryOf(trace: TraceRecord): TraceSummary {
  const { id, group, image, digest, platform, durationMs, files } = trace;
  return {
    id,
    group,
    image,
    ...(digest === undefined ? {} : { digest }),
    ...(platform === undefined ? {} : { platform }),
    start: new Date(trace.startedAt).toISOString(),
    durationMs,
    files,
    received: new Date(trace.receivedAt).toISOString(),
  };
}

function idOf(request: FastifyRequest): string {
  noQuery(request.query);
  const { id } = request.params as { id: string };
  if (ID.test(id)) return id;
  throw new FirstlightError('usage', 'a trace is named by 64 hex digits', {
    hint: 'GET /v1/traces lists them',
  });
}

export function traceRoutes(app: FastifyInstance, options: TraceRoutesOptions): void {
  const { store, metrics, upload } = options;
  const reports = new PQueue({ concurrency: REPORTS_AT_ONCE });

  async function take(request: FastifyRequest, signal: AbortSignal): Promise<TraceReceipt> {
    const scratch = await store.blobs.makeScratch();
    try {
      const path = bodyPath(scratch);
      const late = new AbortController();
      const what = `the trace was not there after ${BODY_MS / 1000} s`;
      const stop = () => late.abort(new FirstlightError('timeout', what));
      const timer = setTimeout(stop, BODY_MS);
      try {
        const either = AbortSignal.any([signal, late.signal]);
        await receiveBody(request.raw, path, upload, either, () => {});
      } finally {
        clearTimeout(timer);
      }
      const { trace, added, images } = await store.traces.add(path, signal);
      return { trace: summaryOf(trace), added, images };
    } finally {
      await store.blobs.dropScratch(scratch);
    }
  }

  async function report(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    let result = 'ok';
    try {
      noQuery(request.query);
      const signal = clientSignal(reply);
      const receipt = await reports.add(() => take(request, signal), { signal });
      if (!receipt.added) result = 'known';
      return reply.code(receipt.added ? 201 : 200).send(receipt);
    } catch (thrown) {
      result = clientError(thrown).kind;
      dropRest(request, reply, upload.stallMs);
      throw thrown;
    } finally {
      metrics.traces.inc({ result });
    }
  }

  app.post(API.traces, report);
  app.get(API.traces, async (request) => {
    noQuery(request.query);
    return (await store.traces.list()).map(summaryOf);
  });
  app.get(`${API.traces}/:id`, async (request, reply) => {
    const data = await store.traces.data(idOf(request));
    const text = await decompress(data, { maxOutputLength: TRACE_MAX_BYTES });
    return reply.type('application/json; charset=utf-8').send(text);
  });
  app.delete(`${API.traces}/:id`, async (request, reply) => {
    await store.traces.remove(idOf(request));
    return reply.code(204).send();
  });
}
