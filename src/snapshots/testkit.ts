// A snapshotter for tests: the real service on a real socket, called over gRPC as containerd calls it. Images
// that come lazily need a kernel and stand in test/e2e. What does not live here: mounting.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ClientReadableStream, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import type { ExecutionContext } from 'ava';
import { pino } from 'pino';
import { Receiver, useTokenFile } from '../receive/receiver.ts';
import { LayerStore } from '../store/layer-store.ts';
import { SnapshotMetrics } from './metrics.ts';
import { type InfoMessage, loadService } from './rpc.ts';
import { SnapshotService } from './service.ts';
import type { Mount } from './types.ts';

const LOG = pino({ level: 'silent' });

type Calls = Record<
  string,
  (
    request: object,
    metadata: Metadata,
    done: (error: ServiceError | null, answer: never) => void,
  ) => ClientReadableStream<{ info: InfoMessage[] }>
>;

/** containerd's side of the service. */
export class Client {
  readonly #client: InstanceType<ReturnType<typeof loadService>>;

  constructor(socket: string) {
    const Service = loadService();
    this.#client = new Service(`unix://${socket}`, credentials.createInsecure());
  }

  /** One call; rejects with the status as `code`. The signal cancels it. */
  call<T>(
    method: string,
    request: object,
    namespace?: string,
    { signal }: { signal?: AbortSignal } = {},
  ): Promise<T> {
    const metadata = new Metadata();
    if (namespace !== undefined) metadata.set('containerd-namespace', namespace);
    return new Promise((resolve, reject) => {
      const calls = this.#client as unknown as Calls;
      const call = calls[method]!.call(this.#client, request, metadata, (error, answer) =>
        error === null ? resolve(answer as T) : reject(error),
      );
      signal?.addEventListener('abort', () => call.cancel(), { once: true });
    });
  }

  async prepare(key: string, parent = '', labels = {}, namespace?: string): Promise<Mount[]> {
    const request = { key, parent, labels };
    return (await this.call<{ mounts: Mount[] }>('Prepare', request, namespace)).mounts;
  }

  async view(key: string, parent = '', labels = {}): Promise<Mount[]> {
    return (await this.call<{ mounts: Mount[] }>('View', { key, parent, labels })).mounts;
  }

  async mounts(key: string): Promise<Mount[]> {
    return (await this.call<{ mounts: Mount[] }>('Mounts', { key })).mounts;
  }

  async commit(name: string, key: string, labels = {}, parent = ''): Promise<void> {
    await this.call('Commit', { name, key, labels, parent });
  }

  async remove(key: string): Promise<void> {
    await this.call('Remove', { key });
  }

  async stat(key: string): Promise<InfoMessage> {
    return (await this.call<{ info: InfoMessage }>('Stat', { key })).info;
  }

  async usage(key: string): Promise<{ size: number; inodes: number }> {
    return this.call('Usage', { key });
  }

  async update(info: Partial<InfoMessage>, paths?: string[]): Promise<InfoMessage> {
    const updateMask = paths === undefined ? undefined : { paths };
    return (await this.call<{ info: InfoMessage }>('Update', { info, updateMask })).info;
  }

  /** Keys of what the filters match, and the number of messages they came in. */
  list(...filters: string[]): Promise<{ keys: string[]; messages: number }> {
    return new Promise((resolve, reject) => {
      const calls = this.#client as unknown as Record<
        string,
        (request: object) => ClientReadableStream<{ info: InfoMessage[] }>
      >;
      const keys: string[] = [];
      let messages = 0;
      const stream = calls.List!.call(this.#client, { filters });
      stream.on('data', ({ info }: { info: InfoMessage[] }) => {
        messages++;
        keys.push(...info.map(({ name }) => name));
      });
      stream.once('error', reject);
      stream.once('end', () => resolve({ keys, messages }));
    });
  }

  close(): void {
    this.#client.close();
  }
}

export interface Harness {
  /** The store's root. */
  root: string;
  socket: string;
  client: Client;
  metrics: SnapshotMetrics;
  /** Ends the service and starts it again on the same root. */
  restart(): Promise<void>;
}

export interface HarnessOptions {
  /** Delta server; without it there is none. */
  server?: string;
  /** File with the token for it. */
  tokenFile?: string;
  /** ms; 2000 where it is left out. */
  prepareTimeoutMs?: number;
}

/** A service in a directory of its own, ended and removed with the test. */
export async function snapshotter(
  t: ExecutionContext<unknown>,
  { server, tokenFile, prepareTimeoutMs = 2000 }: HarnessOptions = {},
): Promise<Harness> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-snapshots-'));
  const root = join(directory, 'root');
  const socket = join(directory, 's.sock');
  const metrics = new SnapshotMetrics();
  const start = async () => {
    const store = await LayerStore.open(root, { log: LOG });
    const platform = 'linux/amd64';
    if (server !== undefined && tokenFile !== undefined) {
      useTokenFile(store, server, tokenFile, LOG);
    }
    const service = await SnapshotService.start({
      store,
      socket,
      server,
      platform,
      prepareTimeoutMs,
      keepWarmMs: 0,
      waitTimeoutMs: 1000,
      threads: 1,
      passthrough: true,
      opens: 'auto',
      open: (ref, signal) => Receiver.open(store, { server, ref, platform, log: LOG, signal }),
      release: (receiver) => receiver.close(),
      close: (receiver) => receiver.close(),
      metrics,
      log: LOG,
    });
    return async () => {
      await service.stopListening();
      await service.close();
      await store.close();
    };
  };
  let stop = await start();
  const harness: Harness = {
    root,
    socket,
    client: new Client(socket),
    metrics,
    restart: async () => {
      harness.client.close();
      await stop();
      stop = await start();
      harness.client = new Client(socket);
    },
  };
  t.teardown(async () => {
    harness.client.close();
    await stop();
    await rm(directory, { recursive: true, force: true });
  });
  return harness;
}
