// /v1/images: list, inspect, add and remove; /v1/chains: by a layer.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import {
  API,
  type IntakeEvent,
  type IntakeQuery,
  REGISTRY_AUTH_HEADER,
} from '../delta/protocol.ts';
import { FirstlightError, httpStatus } from '../errors/errors.ts';
import { formatPlatform, hostPlatform, parsePlatform } from '../image/platform.ts';
import { parseReference } from '../image/reference.ts';
import { openRegistry } from '../image/registry.ts';
import type { ImageSource } from '../image/source.ts';
import { clientSignal, dropRest } from './client.ts';
import { clientError, errorBody } from './error-body.ts';
import type { ImageStore } from './image-store.ts';
import type { Metrics } from './metrics.ts';
import { normalizeName } from './names.ts';
import { bodyPath, openUpload, receiveBody, type UploadLimits } from './upload.ts';
import { addQuery, chainId, imageQuery, noQuery, registryAuth } from './validate.ts';

export interface ImageRoutesOptions {
  store: ImageStore;
  metrics: Metrics;
  upload: UploadLimits;
  /** Pulls without a login of the client's own may use the server's. */
  registryLogin: boolean;
  /** Where mirrors and certificates of registries are looked for. */
  hostsDirs: readonly string[];
}

/** A progress event is sent at most this often; a client that shows a bar needs no more. */
const PROGRESS_MS = 100;
/** The NDJSON answer: its first event commits it to status 200, an error before that has its own status. */
class EventStream {
  readonly #reply: FastifyReply;
  #started = false;
  #progressAt = 0;

  constructor(reply: FastifyReply) {
    this.#reply = reply;
  }

  get started(): boolean {
    return this.#started;
  }

  send(event: IntakeEvent): void {
    const { raw } = this.#reply;
    if (event.event === 'progress') {
      const now = performance.now();
      const last = event.doneBytes === event.totalBytes;
      if (!last && now - this.#progressAt < PROGRESS_MS) return;
      this.#progressAt = now;
    }
    if (raw.destroyed) return;
    if (!this.#started) {
      this.#started = true;
      this.#reply.hijack();
      raw.writeHead(200, {
        'content-type': 'application/x-ndjson',
        'cache-control': 'no-store',
      });
    }
    // A few short lines: what the socket does not take at once may wait in memory.
    raw.write(`${JSON.stringify(event)}\n`);
  }

  end(): void {
    this.#reply.raw.end();
  }
}

type Query = ReturnType<typeof addQuery>;

/** What is wrong with a request before its body is looked at. */
function checkAdd(query: Query): { platform: string } {
  if (query.name !== undefined) normalizeName(query.name);
  if (query.kind === 'docker' && query.source === undefined) {
    throw new FirstlightError('usage', 'kind=docker needs source=HOST/NAME:TAG');
  }
  if (query.kind === 'docker') parseReference(query.source!);
  if (query.base !== undefined && query.kind !== 'oci') {
    throw new FirstlightError('usage', 'base= goes with kind=oci alone');
  }
  if (query.kind === 'rootfs' && query.name === undefined) {
    throw new FirstlightError('usage', 'a root filesystem has no name of its own', {
      hint: 'give one with name=NAME:TAG',
    });
  }
  const platform = query.platform === undefined ? hostPlatform() : parsePlatform(query.platform);
  return { platform: formatPlatform(platform) };
}

export function imageRoutes(app: FastifyInstance, options: ImageRoutesOptions): void {
  const { store, metrics } = options;

  async function add(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const query = addQuery(request.query);
    const auth = registryAuth(request.headers[REGISTRY_AUTH_HEADER]);
    const { platform } = checkAdd(query);
    const events = new EventStream(reply);
    const signal = clientSignal(reply);
    const scratch = await store.blobs.makeScratch();
    const open = async (turn: AbortSignal): Promise<ImageSource> => {
      if (query.kind === 'docker') {
        return openRegistry(parseReference(query.source!), {
          platform,
          signal: turn,
          // null: no login at all. Whoever can reach the server could otherwise read by it what only it may.
          auth: auth ?? (options.registryLogin ? undefined : null),
          // The same holds for client certificates and headers, which stand beside the mirrors.
          ownCredentials: options.registryLogin,
          hostsDirs: options.hostsDirs,
          onFallback: (host, error) => {
            request.log.info({ host, kind: error.kind }, 'registry: another host is asked');
          },
        });
      }
      const path = bodyPath(scratch);
      await receiveBody(request.raw, path, options.upload, turn, (bytes) =>
        metrics.receivedBytes.inc(bytes),
      );
      return openUpload(
        query.kind as Exclude<IntakeQuery['kind'], 'docker'>,
        path,
        query.source,
        platform,
      );
    };
    let result = 'ok';
    try {
      const image = await store.add({
        open,
        name: query.name,
        base: query.base,
        signal,
        onEvent: (event) => events.send(event),
      });
      events.send({ event: 'done', image });
      events.end();
    } catch (thrown) {
      const error = clientError(thrown);
      result = error.kind;
      if (!events.started) {
        dropRest(request, reply, options.upload.stallMs);
        throw error;
      }
      metrics.errors.inc({ kind: error.kind });
      request.log.warn({ kind: error.kind, status: httpStatus(error) }, 'intake failed');
      events.send({ event: 'error', ...errorBody(error) });
      events.end();
    } finally {
      metrics.intakes.inc({ kind: query.kind, result });
      await store.blobs.dropScratch(scratch);
    }
    return reply;
  }

  app.get(`${API.chains}/:id`, async (request) => {
    noQuery(request.query);
    return store.chains.find(chainId((request.params as { id: string }).id));
  });

  /** The reference behind /v1/images/; it may hold slashes. */
  const refOf = (request: FastifyRequest) => (request.params as { '*': string })['*'];

  app.get(API.images, async (request) => {
    imageQuery(request.query);
    return store.list();
  });
  app.post(API.images, add);
  app.get(`${API.images}/*`, async (request) =>
    store.inspect(refOf(request), imageQuery(request.query).platform),
  );
  app.delete(`${API.images}/*`, async (request, reply) => {
    await store.remove(refOf(request), imageQuery(request.query).platform);
    return reply.code(204).send();
  });
}
