// The body of a thread that makes frames for frame-pool.ts.
import { parentPort, workerData } from 'node:worker_threads';
import { toFirstlightError } from '../errors/errors.ts';
import { type FrameJob, makeFrame } from './frame.ts';
import { Compressor } from './zstd.ts';

const port = parentPort!;
const compressor = new Compressor((workerData as { level: number }).level);

port.on('message', (job: FrameJob) => {
  try {
    const made = makeFrame(job, compressor);
    // The compressor gives each frame memory of its own, so it can be handed over.
    port.postMessage({ made }, [made.bytes.buffer as ArrayBuffer]);
  } catch (error) {
    const { kind, message, hint } = toFirstlightError(error);
    port.postMessage({ error: { kind, message, hint } });
  }
});
