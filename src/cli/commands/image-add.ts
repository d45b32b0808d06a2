// `firstlight image add SOURCE`: takes an image in, on a server or directly in a server's store.

import { createInterface } from 'node:readline';
import { Transform } from 'node:stream';
import {
  API,
  type ImageSummary,
  type IntakeEvent,
  REGISTRY_AUTH_HEADER,
  type RegistryAuth,
} from '../../delta/protocol.ts';
import { FirstlightError } from '../../errors/errors.ts';
import {
  formatReference,
  parseReference,
  parseSource,
  type Source,
} from '../../image/reference.ts';
import { errorFrom } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { namedPlatform } from '../mount-request.ts';
import { formatBytes, shortDigest } from '../print.ts';
import { connectionError } from '../server-client.ts';
import { ask, warnOfPlainText } from '../token.ts';
import { type Upload, uploadFile, uploadLayout } from '../upload.ts';

/** Shows an intake: a bar on a terminal, lines of JSON for programs, else nothing. */
export class IntakeView {
  readonly #context: Context;
  #bar: { update(done: number, total: number, note?: string): void; stop(): void } | undefined;

  constructor(context: Context) {
    this.#context = context;
  }

  async start(): Promise<void> {
    const { json, quiet } = this.#context;
    if (json || quiet || process.stderr.isTTY !== true) return;
    const { ByteBar } = await import('../progress.ts');
    this.#bar = new ByteBar('image');
  }

  upload(doneBytes: number, totalBytes: number): void {
    this.#bar?.update(doneBytes, totalBytes, 'upload');
  }

  event(event: IntakeEvent): void {
    if (event.event === 'progress') this.#bar?.update(event.doneBytes, event.totalBytes, 'layers');
    if (event.event === 'encode') this.#bar?.update(1, 1, 'encoding');
  }

  stop(): void {
    this.#bar?.stop();
  }
}

/** The server's NDJSON, to its last line. */
async function readEvents(
  body: AsyncIterable<Uint8Array> & NodeJS.ReadableStream,
  view: IntakeView,
  server: string,
): Promise<ImageSummary> {
  try {
    for await (const line of createInterface({ input: body })) {
      if (line === '') continue;
      const event = JSON.parse(line) as IntakeEvent;
      if (event.event === 'done') return event.image;
      if (event.event === 'error') throw errorFrom(event.error);
      view.event(event);
    }
  } catch (error) {
    throw error instanceof FirstlightError ? error : connectionError(error, server);
  }
  throw new FirstlightError('unreachable', `the server ${server} ended the intake without a word`, {
    hint: 'see its log',
  });
}

async function uploadOf(source: Source): Promise<Upload | undefined> {
  switch (source.kind) {
    case 'registry':
      return undefined;
    case 'oci':
      return uploadLayout(source.directory, source.tag);
    case 'docker-archive':
    case 'rootfs':
      return uploadFile(source.file);
  }
}

async function headersOf(context: Context, source: Source): Promise<Record<string, string>> {
  if (source.kind !== 'registry') return { 'content-type': 'application/octet-stream' };
  const { readDockerAuth } = await import('../../image/docker-config.ts');
  const auth = await readDockerAuth(source.reference.registry);
  if (auth === undefined) return {};
  warnOfPlainText(context, `the login for ${source.reference.registry}`);
  const { username, password, identityToken, registryToken } = auth;
  const login: RegistryAuth = {
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    ...(identityToken === undefined ? {} : { identitytoken: identityToken }),
    ...(registryToken === undefined ? {} : { registrytoken: registryToken }),
  };
  return { [REGISTRY_AUTH_HEADER]: Buffer.from(JSON.stringify(login)).toString('base64') };
}

function queryOf(source: Source, name: string | undefined, platform: string | undefined) {
  const query: Record<string, string> = {
    kind: source.kind === 'registry' ? 'docker' : source.kind,
  };
  if (source.kind === 'registry') query.source = formatReference(source.reference);
  else if (source.kind !== 'rootfs' && source.tag !== undefined) query.source = source.tag;
  if (name !== undefined) query.name = name;
  if (platform !== undefined) query.platform = platform;
  return query;
}

/** What is sent beside the source. */
export interface AddToServer {
  name: string | undefined;
  platform: string | undefined;
  /** Manifest digest of an image of the server whose layers are the first ones of this. */
  base?: string;
  /** The body, where it is not simply the source. */
  upload?: Upload;
}

/** Takes a source in on the server; files of this machine are uploaded. */
export async function addByServer(
  context: Context,
  source: Source,
  { name, platform, base, upload: given }: AddToServer,
  view: IntakeView,
): Promise<ImageSummary> {
  const server = context.settings.text('server');
  const upload = given ?? (await uploadOf(source));
  let doneBytes = 0;
  const counter = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      doneBytes += chunk.length;
      view.upload(Math.min(doneBytes, upload?.totalBytes ?? 0), upload?.totalBytes ?? 0);
      done(null, chunk);
    },
  });
  let broken: Error | undefined;
  upload?.stream.on('error', (error) => {
    broken = error;
    counter.destroy(error);
  });
  try {
    const body = await ask(context, API.images, {
      method: 'POST',
      query: { ...queryOf(source, name, platform), ...(base === undefined ? {} : { base }) },
      headers: await headersOf(context, source),
      ...(upload === undefined ? {} : { body: upload.stream.pipe(counter) }),
    });
    return await readEvents(body, view, server);
  } catch (error) {
    context.signal.throwIfAborted();
    // The server only saw the connection break; what broke it stands here.
    throw broken ?? error;
  } finally {
    upload?.stream.destroy();
  }
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const source = parseSource(args[0] ?? '');
  const name = options.name as string | undefined;
  if (name !== undefined) parseReference(name);
  if (name === undefined && source.kind === 'rootfs') {
    throw new FirstlightError('usage', 'a rootfs has no name of its own', {
      hint: 'give --name NAME:TAG',
    });
  }
  const platform = namedPlatform(context);
  const view = new IntakeView(context);
  await view.start();
  let image: ImageSummary;
  try {
    const data = context.settings.optional('data');
    if (data === undefined) image = await addByServer(context, source, { name, platform }, view);
    else {
      const { addLocal } = await import('../local-server.ts');
      const { splitHostsDirs } = await import('../../image/registry-hosts.ts');
      image = await addLocal(data, source, {
        name,
        platform: platform ?? context.settings.text('platform'),
        hostsDirs: splitHostsDirs(context.settings.text('hosts-dir')),
        signal: context.signal,
        onEvent: (event) => view.event(event),
      });
    }
  } finally {
    view.stop();
  }
  if (context.json) context.printJson(image);
  else {
    context.print(
      `${image.name}  ${shortDigest(image.digest)}  ${image.platform}  ${formatBytes(image.bytes)}, ${image.entries} entries`,
    );
  }
  return undefined;
}
