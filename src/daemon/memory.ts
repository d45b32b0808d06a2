// Gives memory back after a transfer: hundreds of megabytes of frames have passed through the heap, and
// a daemon that then only waits would hold on to what they left, since nothing makes the garbage
// collector run again. What does not live here: when a transfer ends (transfers.ts).
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { native } from '../native/index.ts';

/** Transfers that end together are tidied up after once. */
const PAUSE_MS = 300;

type Collect = (options: { type: 'major'; flavor: 'last-resort' }) => void;

let collect: Collect | undefined;
let timer: NodeJS.Timeout | undefined;

/** The collector is not to be had without a flag; flags may be set while running, for new contexts. */
function collector(): Collect {
  if (collect === undefined) {
    setFlagsFromString('--expose-gc');
    collect = runInNewContext('gc') as Collect;
    setFlagsFromString('--no-expose-gc');
  }
  return collect;
}

/**
 * Collects garbage and trims the heap a moment from now. Stops this thread for some tens of
 * milliseconds; the threads that answer the kernel go on meanwhile.
 */
export function settleMemory(): void {
  clearTimeout(timer);
  timer = setTimeout(() => {
    collector()({ type: 'major', flavor: 'last-resort' });
    // It cannot fail, and whether it helped is nobody's business.
    native()
      .trimMemory()
      .catch(() => undefined);
  }, PAUSE_MS);
  timer.unref();
}
