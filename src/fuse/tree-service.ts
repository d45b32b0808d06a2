// The tree's thread: the writable trees of all mounts of the daemon, each with the requests that come
// for it. Here a system call on an upper directory may wait for the disk, since nothing else of the
// daemon runs here. What does not live here: the other end (tree-thread.ts),
// and the thread's entry (tree-worker.ts).
import { parentPort } from 'node:worker_threads';
import { toFirstlightError } from '../errors/errors.ts';
import { makeLogger } from '../log/log.ts';
import { native } from '../native/index.ts';
import { WritableTree } from '../tree/rw/tree.ts';
import { TreeImage } from './tree-contents.ts';
import type { AttachRequest, FromTree, ToTree, TreeRequest } from './tree-messages.ts';
import { UpcallServer } from './upcalls.ts';

interface Attached {
  server: UpcallServer;
  digest: string;
}

const log = makeLogger('tree');
const attached = new Map<number, Attached>();
const images = new Map<string, TreeImage>();

function imageOf({ digest, places }: AttachRequest): TreeImage {
  const known = images.get(digest);
  if (known !== undefined) return known.retain();
  const image = new TreeImage(places);
  images.set(digest, image);
  return image;
}

function letGo(digest: string): void {
  if (images.get(digest)?.release() === true) images.delete(digest);
}

/** A path as the byte string that names are inside. */
const bytesOf = (path: string): string => Buffer.from(path).toString('latin1');

function attach(request: AttachRequest): void {
  const { channel, digest, upper, work, mountPoint, counters } = request;
  const image = imageOf(request);
  const addon = native();
  const ours = log.child({ mountPoint });
  try {
    const server = new UpcallServer(
      (handler) => new addon.Upcalls(channel, handler),
      (host, isReady) =>
        WritableTree.open({
          toc: image.toc,
          upper: bytesOf(upper),
          work: bytesOf(work),
          io: addon.upper,
          host,
          openContent: (content) => (isReady(content) ? image.open(content) : undefined),
          log: ours,
        }),
      new Float64Array(counters),
      ours,
    );
    attached.set(channel, { server, digest });
  } catch (error) {
    letGo(digest);
    throw error;
  }
}

function detach(channel: number): void {
  const mount = attached.get(channel);
  if (mount === undefined) return;
  attached.delete(channel);
  try {
    mount.server.close();
  } finally {
    letGo(mount.digest);
  }
}

function obey(request: TreeRequest): void {
  if (request.do === 'attach') attach(request.request);
  else detach(request.channel);
}

function answer(message: FromTree): void {
  parentPort?.postMessage(message);
}

native().upper.prepareThread();
parentPort?.on('message', ({ id, request }: ToTree) => {
  try {
    obey(request);
    answer({ id, error: undefined });
  } catch (cause) {
    const { kind, message, hint } = toFirstlightError(cause);
    answer({ id, error: { kind, message, hint } });
  }
});
