// The body of the thread that trace-thread.ts starts: one job, then it ends.
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { Toc } from '../delta/toc.ts';
import { filesOfToc } from '../delta/toc-files.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { ImageFiles } from '../optimize/match.ts';
import { rankImage } from '../optimize/ranks.ts';
import { formatTracer } from '../trace/format.ts';
import { parseTracer } from '../trace/parse.ts';
import { TRACE_MAX_BYTES, type Tracer } from '../trace/tracer.ts';
import { packRanks } from './ranks.ts';
import type {
  CheckedTrace,
  MadeRanks,
  RelatedTrace,
  ThreadImage,
  TraceAnswer,
  TraceJob,
} from './trace-thread.ts';

// Stand-ins for references, so that optimize/ sees the relations that the catalog has found. No trace
// can name them: control characters are refused.
const TARGET = '\u0001:this';
const VERSION = '\u0001:other';

async function check(path: string): Promise<CheckedTrace> {
  const tracer = parseTracer(await readFile(path), 'the trace');
  if (tracer.seq.length === 0) throw new FirstlightError('corrupt', 'the trace: seq has no file');
  const text = Buffer.from(formatTracer(tracer));
  if (text.length > TRACE_MAX_BYTES)
    throw new FirstlightError('corrupt', `the trace is larger than ${TRACE_MAX_BYTES} bytes`);
  const ms = (ns: bigint) => Number(ns / 1_000_000n);
  return {
    trace: {
      id: createHash('sha256').update(text).digest('hex'),
      group: tracer.group,
      image: tracer.image,
      digest: tracer.digest,
      platform: tracer.platform,
      startedAt: ms(tracer.startNs),
      durationMs: ms(tracer.endNs - tracer.startNs),
      files: tracer.seq.length,
      bytes: text.length,
    },
    data: zstdCompressSync(text),
  };
}

/** Buffers cross between threads as plain Uint8Arrays. */
function buffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

function filesOf(image: ThreadImage): ImageFiles {
  return filesOfToc(new Toc(buffer(image.toc)), buffer(image.digests));
}

/** A stored trace, named so that its relation to the image is plain from its reference. */
function related({ relation, digest, data }: RelatedTrace, image: string): Tracer {
  const bytes = zstdDecompressSync(data, { maxOutputLength: TRACE_MAX_BYTES });
  const tracer = parseTracer(bytes, 'a stored trace');
  // Which platforms and names go together has been decided before.
  const { platform: _, digest: __, ...run } = tracer;
  if (relation === 'own') return { ...run, image: TARGET, digest: image };
  const named = digest === undefined ? run : { ...run, digest };
  return relation === 'version' ? { ...named, image: VERSION } : named;
}

function rank({ image, others, traces }: TraceJob & { op: 'rank' }): MadeRanks {
  const toc = new Toc(buffer(image.toc));
  const indexed = new Map<string, ImageFiles>();
  const found = rankImage(
    traces.map((trace) => related(trace, image.digest)),
    { digest: image.digest, image: TARGET, files: filesOf(image) },
    (digest) => {
      const known = indexed.get(digest);
      const other = others.find((o) => o.digest === digest);
      if (known !== undefined || other === undefined) return known;
      const files = filesOf(other);
      indexed.set(digest, files);
      return files;
    },
  );
  const ranks = found.parts.map(({ path, part }) => ({
    content: toc.content(toc.resolve(path)),
    ...(part === undefined ? {} : { part }),
  }));
  return { data: packRanks(ranks), count: ranks.length, runs: found.runs };
}

const job = workerData as TraceJob;
let answer: TraceAnswer;
try {
  answer = { value: job.op === 'check' ? await check(job.path) : rank(job) };
} catch (error) {
  const { kind, message, hint } = toFirstlightError(error);
  answer = { error: { kind, message, hint } };
}
parentPort!.postMessage(answer);
