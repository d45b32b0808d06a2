// /v1/delta and /v1/bundles/ID: bundles, made where they are not there yet, and sent.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { API, FRAMES_HEADER, IMAGE_DIGEST_HEADER } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { OpenBundle } from './bundle-shelf.ts';
import { closedSignal } from './client.ts';
import type { ImageStore } from './image-store.ts';
import { type Sender, sendBundle } from './send.ts';
import { deltaQuery, takesPatches } from './validate.ts';

/** A bundle can go between being found and being opened; then it is made again, this often. */
const ATTEMPTS = 3;
const ID = /^[0-9a-f]{64}$/;

export function deltaRoutes(app: FastifyInstance, store: ImageStore, sender: Sender): void {
  async function findAndOpen(
    query: ReturnType<typeof deltaQuery>,
    patches: boolean,
    gone: AbortSignal,
  ): Promise<OpenBundle> {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const image = await store.find(query.image, query.platform);
      const { id } = await store.bundleFor(image, query.base, patches, gone);
      const bundle = await store.bundles.shelf.open(id);
      if (bundle !== undefined) return bundle;
    }
    throw new FirstlightError(
      'internal',
      `the bundle of ${query.image} goes as soon as it is made`,
    );
  }

  async function delta(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const patches = takesPatches(request.headers[FRAMES_HEADER]);
    const gone = closedSignal(request.raw.socket);
    const bundle = await findAndOpen(deltaQuery(request.query), patches, gone);
    reply
      .header('vary', FRAMES_HEADER)
      .header('content-location', `${API.bundles}/${bundle.record.id}`)
      .header(IMAGE_DIGEST_HEADER, bundle.record.image)
      // A name can move to another image: a cache has to ask, and asking costs a 304.
      .header('cache-control', 'no-cache');
    return sendBundle(request, reply, bundle, sender);
  }

  async function byId(request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const { id } = request.params as { id: string };
    const bundle = ID.test(id) ? await store.bundles.shelf.open(id) : undefined;
    if (bundle === undefined) {
      throw new FirstlightError('not-found', 'there is no such bundle, or no longer', {
        hint: `ask ${API.delta} again`,
      });
    }
    reply
      .header(IMAGE_DIGEST_HEADER, bundle.record.image)
      .header('cache-control', 'public, max-age=86400, immutable');
    return sendBundle(request, reply, bundle, sender);
  }

  app.route({ method: ['GET', 'HEAD'], url: API.delta, handler: delta });
  app.route({ method: ['GET', 'HEAD'], url: `${API.bundles}/:id`, handler: byId });
}
