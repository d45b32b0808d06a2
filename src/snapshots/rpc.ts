// gRPC: the wire format of the snapshots service, its socket, and the status codes that errors become.
// What the calls mean stands in snapshotter.ts.
import { chmod, mkdir, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  loadPackageDefinition,
  type Metadata,
  Server,
  ServerCredentials,
  type ServiceClientConstructor,
  type StatusObject,
  status,
} from '@grpc/grpc-js';
import { loadSync, type Options } from '@grpc/proto-loader';
import { type ErrorKind, FirstlightError, toFirstlightError } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { SnapshotMetrics } from './metrics.ts';
import type { Snapshotter } from './snapshotter.ts';
import type { Kind, Labels, Mount, Snapshot } from './types.ts';

/** Beside src/ and dist/ alike. */
const PROTO_DIRECTORY = join(import.meta.dirname, '../../proto');
const LOADING: Options = {
  longs: Number,
  enums: Number,
  defaults: true,
  includeDirs: [PROTO_DIRECTORY],
};
/** Snapshots in one message of a list. */
const LIST_BATCH = 100;
/** Header in which containerd 2.x says the namespace. */
const NAMESPACE_HEADER = 'containerd-namespace';
/** containerd's own limit of a message. */
const MESSAGE_MAX_BYTES = 16 << 20;
/** Calls under way have so long to end when the server is closed. */
const CLOSE_MS = 5000;

/** What containerd's error package makes of each code is what its callers act on. */
const CODES: Record<ErrorKind, status> = {
  internal: status.INTERNAL,
  usage: status.INVALID_ARGUMENT,
  'not-found': status.NOT_FOUND,
  unreachable: status.UNAVAILABLE,
  permission: status.PERMISSION_DENIED,
  busy: status.FAILED_PRECONDITION,
  'no-space': status.RESOURCE_EXHAUSTED,
  platform: status.NOT_FOUND,
  corrupt: status.DATA_LOSS,
  unauthorized: status.UNAUTHENTICATED,
  timeout: status.DEADLINE_EXCEEDED,
  unsupported: status.UNIMPLEMENTED,
  exists: status.ALREADY_EXISTS,
};

interface Timestamp {
  seconds: number;
  nanos: number;
}

/** A snapshot as the wire has it. */
export interface InfoMessage {
  name: string;
  parent: string;
  kind: Kind;
  createdAt: Timestamp | null;
  updatedAt: Timestamp | null;
  labels: Labels;
}

interface KeyRequest {
  key: string;
}
interface CommitRequest {
  name: string;
  key: string;
  labels: Labels;
  /** Of containerd 2.2 and newer; empty where it stays the one that it was prepared on. */
  parent: string;
}
interface NewSnapshotRequest {
  key: string;
  parent: string;
  labels: Labels;
}

/** The service as a client's constructor; tests call it as containerd would. */
export function loadService(): ServiceClientConstructor {
  const loaded = loadPackageDefinition(loadSync('snapshots.proto', LOADING)) as unknown as {
    containerd: { services: { snapshots: { v1: { Snapshots: ServiceClientConstructor } } } };
  };
  return loaded.containerd.services.snapshots.v1.Snapshots;
}

function timestamp(ms: number): Timestamp {
  const seconds = Math.floor(ms / 1000);
  return { seconds, nanos: (ms - seconds * 1000) * 1_000_000 };
}

function infoOf(snapshot: Snapshot): InfoMessage {
  return {
    name: snapshot.key,
    parent: snapshot.parent,
    kind: snapshot.kind,
    createdAt: timestamp(snapshot.createdAt),
    updatedAt: timestamp(snapshot.updatedAt),
    labels: snapshot.labels,
  };
}

/** The status of an error; its text tells all, since containerd shows nothing else. */
function statusOf(error: unknown): Partial<StatusObject> {
  const { kind, line } = toFirstlightError(error);
  return { code: CODES[kind], details: line };
}

function namespaceFrom(metadata: Metadata): string {
  return String(metadata.get(NAMESPACE_HEADER)[0] ?? '');
}

export interface RpcOptions {
  /** Absolute path of the socket. */
  socket: string;
  snapshotter: Snapshotter;
  metrics: SnapshotMetrics;
  log: Logger;
}

/** The service on its socket. */
export class RpcServer {
  readonly #server: Server;
  readonly #options: RpcOptions;

  private constructor(server: Server, options: RpcOptions) {
    this.#server = server;
    this.#options = options;
  }

  /**
   * Listens; only root may connect. The caller holds the root's lock, so a socket that stands there belongs to a
   * process that is gone, or to another root: then the listening fails.
   * @throws FirstlightError `busy` where somebody answers on the socket; `usage` for a path that is too long
   */
  static async listen(options: RpcOptions): Promise<RpcServer> {
    const { socket } = options;
    if (Buffer.byteLength(socket) > 107) {
      throw new FirstlightError('usage', `the socket's path ${socket} is longer than 107 bytes`, {
        hint: 'choose a shorter --snapshotter',
      });
    }
    await mkdir(dirname(socket), { recursive: true, mode: 0o711 });
    if (await answers(socket)) {
      throw new FirstlightError('busy', `another process answers on ${socket}`, {
        hint: 'stop it, or choose another --snapshotter',
      });
    }
    await rm(socket, { force: true });
    const server = new Server({
      'grpc.max_receive_message_length': MESSAGE_MAX_BYTES,
      'grpc.max_send_message_length': MESSAGE_MAX_BYTES,
    });
    const rpc = new RpcServer(server, options);
    server.addService(loadService().service, rpc.#handlers());
    // The mask, not a later chmod: at no moment may another user connect.
    const mask = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        server.bindAsync(`unix://${socket}`, ServerCredentials.createInsecure(), (error) =>
          error === null ? resolve() : reject(error),
        );
      });
    } finally {
      process.umask(mask);
    }
    await chmod(socket, 0o600);
    options.log.info({ socket }, 'containerd can connect');
    return rpc;
  }

  /** No new calls; those under way have a moment to end. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.tryShutdown(() => resolve()));
    const timer = setTimeout(() => this.#server.forceShutdown(), CLOSE_MS);
    await closed;
    clearTimeout(timer);
    await rm(this.#options.socket, { force: true });
  }

  /** Runs one call: times it, counts it, and turns its error into a status. */
  async #run<T>(operation: string, work: () => Promise<T>): Promise<T> {
    const { metrics, log } = this.#options;
    const end = metrics.seconds.startTimer({ operation });
    try {
      return await work();
    } catch (error) {
      const { kind, message } = toFirstlightError(error);
      // What containerd asks in order to find out is no failure.
      const asked = kind === 'exists' || (kind === 'not-found' && operation === 'Stat');
      if (!asked) {
        metrics.failures.inc({ operation, code: status[CODES[kind]] });
        log[kind === 'internal' ? 'error' : 'info']({ operation, err: error }, message);
      }
      throw error;
    } finally {
      end();
    }
  }

  #unary<Q, A>(
    operation: string,
    work: (request: Q, namespace: string, gone: AbortSignal) => Promise<A>,
  ): handleUnaryCall<Q, A> {
    return (call, callback) => {
      const gone = new AbortController();
      call.once('cancelled', () => {
        gone.abort(new FirstlightError('timeout', 'the caller has given the call up'));
      });
      const namespace = namespaceFrom(call.metadata);
      this.#run(operation, () => work(call.request, namespace, gone.signal)).then(
        (answer) => callback(null, answer),
        (error: unknown) => callback(statusOf(error)),
      );
    };
  }

  #handlers() {
    const { snapshotter } = this.#options;
    const mounts = async (work: Promise<Mount[]>) => ({ mounts: await work });
    const info = async (work: Promise<Snapshot>) => ({ info: infoOf(await work) });
    const none = async (work: Promise<void>) => {
      await work;
      return {};
    };
    return {
      Prepare: this.#unary('Prepare', (request: NewSnapshotRequest, namespace, gone) =>
        mounts(snapshotter.prepare({ ...request, namespace, gone })),
      ),
      View: this.#unary('View', (request: NewSnapshotRequest, namespace, gone) =>
        mounts(snapshotter.view({ ...request, namespace, gone })),
      ),
      Mounts: this.#unary('Mounts', ({ key }: KeyRequest, _, gone) =>
        mounts(snapshotter.mounts(key, gone)),
      ),
      Commit: this.#unary('Commit', ({ name, key, labels, parent }: CommitRequest) =>
        none(snapshotter.commit(name, key, labels, parent)),
      ),
      Remove: this.#unary('Remove', ({ key }: KeyRequest) => none(snapshotter.remove(key))),
      Stat: this.#unary('Stat', ({ key }: KeyRequest) => info(snapshotter.stat(key))),
      Update: this.#unary(
        'Update',
        (request: { info: InfoMessage | null; updateMask: { paths: string[] } | null }) =>
          info(
            snapshotter.update(
              request.info?.name ?? '',
              request.info?.labels ?? {},
              request.updateMask?.paths ?? [],
            ),
          ),
      ),
      List: this.#list(),
      Usage: this.#unary('Usage', async ({ key }: KeyRequest) => {
        const { bytes, inodes } = await snapshotter.usage(key);
        return { size: bytes, inodes };
      }),
      Cleanup: this.#unary('Cleanup', () => none(snapshotter.cleanup())),
    };
  }

  #list(): handleServerStreamingCall<{ filters: string[] }, { info: InfoMessage[] }> {
    const { snapshotter } = this.#options;
    return (call) => {
      this.#run('List', () => snapshotter.list(call.request.filters)).then(
        (snapshots) => {
          // An empty list is one empty message, as containerd's own service sends it.
          for (let at = 0; at === 0 || at < snapshots.length; at += LIST_BATCH) {
            call.write({ info: snapshots.slice(at, at + LIST_BATCH).map(infoOf) });
          }
          call.end();
        },
        (error: unknown) => {
          // The library ends the stream with the status of what is emitted.
          call.emit('error', Object.assign(new Error('the list failed'), statusOf(error)));
        },
      );
    };
  }
}

/** True where a process accepts connections on a socket. */
async function answers(path: string): Promise<boolean> {
  const { connect } = await import('node:net');
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    // Nothing there, or nobody behind it.
    socket.once('error', () => resolve(false));
  });
}
