// What the tests of store/ and receive/ share: images of known contents, a delta server with
// faults, and a template that checks the promise made to native at each mark.
import { createCipheriv, createHash } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { encodeBundle } from '../../src/delta/bundle-encode.ts';
import { API, FRAMES_HEADER, IMAGE_DIGEST_HEADER } from '../../src/delta/protocol.ts';
import { Toc } from '../../src/delta/toc.ts';
import { buildToc } from '../../src/delta/toc-build.ts';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { makeDirectory, type TreeNode } from '../../src/image/tree.ts';
import type { Logger } from '../../src/log/log.ts';
import {
  CONTENT_STATE,
  type NativeTemplate,
  type TemplateOptions,
} from '../../src/native/index.ts';

/** sha256 as 64 hex digits. */
export function sha256(data: Uint8Array): string {
  return createHash('sha256').update(data).digest('hex');
}

/** Bytes that only `seed` decides, and that do not compress away. */
export function noise(seed: string, bytes: number): Buffer {
  const key = createHash('sha256').update(seed).digest();
  return createCipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(bytes));
}

/** A logger that keeps its lines instead of printing them. */
export function quietLog(): { log: Logger; lines: Record<string, unknown>[] } {
  const lines: Record<string, unknown>[] = [];
  const log = pino({ level: 'debug' }, { write: (line: string) => lines.push(JSON.parse(line)) });
  return { log, lines };
}

/** A directory that is gone after the test. */
export async function scratch(t: { teardown(fn: () => unknown): void }): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-receive-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** An image with everything that a bundle is made of. */
export interface TestImage {
  digest: string;
  manifest: Buffer;
  config: Buffer;
  toc: Toc;
  digests: Buffer;
  /** Contents by hex digest. */
  contents: Map<string, Buffer>;
  /** Hex digest of each content, by index. */
  hex(content: number): string;
}

/** An image of files in directories; paths may share contents. */
export function makeImage(label: string, files: Record<string, Buffer>): TestImage {
  const root = makeDirectory('', 0);
  const contents = new Map<string, Buffer>();
  for (const [path, data] of Object.entries(files)) {
    const names = path.split('/');
    let directory: TreeNode = root;
    for (const name of names.slice(0, -1)) {
      let next = directory.children!.get(name);
      if (next === undefined) {
        next = makeDirectory(name, 0);
        directory.children!.set(name, next);
      }
      directory = next;
    }
    const name = names.at(-1)!;
    const digest = sha256(data);
    if (data.length > 0) contents.set(digest, data);
    const inode = { type: 'file' as const, mode: 0o644, uid: 0, gid: 0, mtimeSec: 1, mtimeNsec: 0 };
    directory.children!.set(name, {
      name,
      inode: { ...inode, size: data.length, ...(data.length > 0 ? { digest } : {}), layer: 0 },
    });
  }
  const { bytes, digests } = buildToc(root);
  const layer = `sha256:${sha256(Buffer.from(label))}`;
  const config = Buffer.from(
    JSON.stringify({ os: 'linux', rootfs: { type: 'layers', diff_ids: [layer] } }),
  );
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      config: { digest: `sha256:${sha256(config)}`, size: config.length },
      layers: [{ digest: layer, size: 1 }],
    }),
  );
  return {
    digest: `sha256:${sha256(manifest)}`,
    manifest,
    config,
    toc: new Toc(bytes),
    digests,
    contents,
    hex: (content) => digests.toString('hex', content * 32, content * 32 + 32),
  };
}

/** Files named f0, f1, ... in directories of ten, of about these sizes. */
export function someFiles(label: string, sizes: number[]): Record<string, Buffer> {
  return Object.fromEntries(
    sizes.map((bytes, i) => [`d${Math.floor(i / 10)}/f${i}`, noise(`${label} ${i}`, bytes)]),
  );
}

export interface EncodedImage {
  bytes: Buffer;
  id: string;
  headerBytes: number;
}

/** The bundle of an image. */
export async function encode(
  image: TestImage,
  options: {
    bases?: TestImage[];
    patches?: boolean;
    ranks?: { content: number; rank: number }[];
  } = {},
): Promise<EncodedImage> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-encode-'));
  const images = [image, ...(options.bases ?? [])];
  const contents = new Map(images.flatMap((each) => [...each.contents]));
  try {
    const path = join(directory, 'bundle');
    const { id, headerBytes } = await encodeBundle(
      {
        manifest: image.manifest,
        config: image.config,
        toc: image.toc,
        digests: image.digests,
        ranks: options.ranks ?? [],
        bases: (options.bases ?? []).map(({ digest, toc, digests }) => ({ digest, toc, digests })),
        patches: options.patches ?? false,
        patchLevel: 9,
        readContent: async (hex, offset, bytes) =>
          contents.get(hex)!.subarray(offset, offset + bytes),
        level: 1,
        threads: 0,
      },
      path,
    );
    return { bytes: await readFile(path), id, headerBytes };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** One request as the server saw it. */
export interface SeenRequest {
  method: string;
  path: string;
  query: URLSearchParams;
  range: { from: number; to: number } | undefined;
  /** Kinds of frames that it allows beyond the plain ones. */
  frames: string | undefined;
  authorization: string | undefined;
  at: number;
  /** Names the connection that it came over. */
  connection: number;
}

/** What goes wrong with one answer. */
export interface Fault {
  /** Answer with this status and no bundle. */
  status?: number;
  /** Break the connection after this many bytes of the body. */
  cutAfter?: number;
  /** Send this many bytes of the body, then nothing more. */
  stallAfter?: number;
  /** Send about so many bytes of the body, nothing for so many ms, and then the rest. */
  pause?: { afterBytes: number; ms: number };
  /** Change the bytes that are sent. `offset` is that of the first one in the bundle. */
  damage?: (bytes: Buffer, offset: number) => Buffer;
  /** Bytes in a second. */
  rate?: number;
  /** Another entity tag than the bundle's. */
  etag?: string;
}

/** A delta server for given bundles, with faults. The bundles are real; the faults are what it is for. */
export class FaultyServer {
  readonly requests: SeenRequest[] = [];
  /** Bytes of bodies that were written to sockets. */
  sentBytes = 0;
  /** The bundle for a request, or undefined for 404; set by the test. */
  delta: (
    query: URLSearchParams,
    seen: SeenRequest,
  ) => Promise<{ image: TestImage; bundle: EncodedImage } | undefined>;
  /** Bundles that can be had by their own URL. */
  readonly bundles = new Map<string, EncodedImage>();
  /** Whether ranges of bundles can be asked for by reference, as the real server lets. */
  deltaRanges = false;
  /** Asked for each request. */
  fault: (request: SeenRequest, index: number) => Fault | undefined = () => undefined;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(http: Server) {
    this.delta = async () => undefined;
    this.#server = http;
    this.url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
    http.on('request', (request, response) => void this.#answer(request, response));
    this.#server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    });
  }

  static async start(t: { teardown(fn: () => unknown): void }, port = 0): Promise<FaultyServer> {
    // Idle connections stay, as those of the real server do.
    const http = createServer({ keepAliveTimeout: 600_000 });
    await new Promise<void>((resolve) => http.listen(port, '127.0.0.1', resolve));
    const server = new FaultyServer(http);
    t.teardown(() => server.stop());
    return server;
  }

  /** Stays the same after `stop`. */
  readonly url: string;

  /** Number of connections that have been made and not closed. */
  get connections(): number {
    return this.#sockets.size;
  }

  /** Serves one image for every reference. */
  serve(image: TestImage, bundle: EncodedImage): void {
    this.bundles.set(bundle.id, bundle);
    this.delta = async () => ({ image, bundle });
  }

  stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => {
      if (!this.#server.listening) resolve();
      else this.#server.close(() => resolve());
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url!, 'http://x');
    const match = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    const seen: SeenRequest = {
      method: request.method!,
      path: url.pathname,
      query: url.searchParams,
      range: match === null ? undefined : { from: Number(match[1]), to: Number(match[2]) + 1 },
      frames: request.headers[FRAMES_HEADER] as string | undefined,
      authorization: request.headers.authorization,
      at: performance.now(),
      connection: request.socket.remotePort!,
    };
    const fault = this.fault(seen, this.requests.length) ?? {};
    this.requests.push(seen);
    if (fault.status !== undefined) {
      response.writeHead(fault.status).end('fault');
      return;
    }
    if (seen.path === API.delta) {
      const found = await this.delta(url.searchParams, seen);
      if (found === undefined) return this.#missing(response);
      const { image, bundle } = found;
      const total = bundle.bytes.length;
      const part = this.deltaRanges ? seen.range : undefined;
      if (part !== undefined && part.from >= total) {
        response.writeHead(416, { 'content-range': `bytes */${total}` }).end();
        return;
      }
      const { from, to } = { from: part?.from ?? 0, to: Math.min(part?.to ?? total, total) };
      response.writeHead(part === undefined ? 200 : 206, {
        'content-length': to - from,
        ...(part === undefined ? {} : { 'content-range': `bytes ${from}-${to - 1}/${total}` }),
        'content-location': `${API.bundles}/${bundle.id}`,
        etag: fault.etag ?? `"${bundle.id}"`,
        [IMAGE_DIGEST_HEADER]: image.digest,
      });
      if (seen.method === 'HEAD') response.end();
      else await this.#send(response, bundle.bytes.subarray(from, to), from, fault);
      return;
    }
    const bundle = this.bundles.get(seen.path.slice(API.bundles.length + 1));
    if (bundle === undefined) return this.#missing(response);
    const etag = fault.etag ?? `"${bundle.id}"`;
    const whole = seen.range === undefined || request.headers['if-range'] !== etag;
    const { from, to } = whole ? { from: 0, to: bundle.bytes.length } : seen.range!;
    response.writeHead(whole ? 200 : 206, {
      'content-length': to - from,
      etag,
      ...(whole ? {} : { 'content-range': `bytes ${from}-${to - 1}/${bundle.bytes.length}` }),
    });
    await this.#send(response, bundle.bytes.subarray(from, to), from, fault);
  }

  #missing(response: ServerResponse): void {
    const error = { kind: 'not-found', message: 'no such image' };
    response.writeHead(404, { 'content-type': 'application/json' }).end(JSON.stringify({ error }));
  }

  async #send(response: ServerResponse, data: Buffer, offset: number, fault: Fault): Promise<void> {
    const bytes = fault.damage?.(Buffer.from(data), offset) ?? data;
    const end = Math.min(
      fault.cutAfter ?? bytes.length,
      fault.stallAfter ?? bytes.length,
      bytes.length,
    );
    const step = fault.rate === undefined ? 64 << 10 : Math.max(1, Math.floor(fault.rate / 100));
    let { pause } = fault;
    for (let at = 0; at < end && !response.destroyed; at += step) {
      if (pause !== undefined && at >= pause.afterBytes) {
        await new Promise((resolve) => setTimeout(resolve, pause!.ms));
        pause = undefined;
      }
      const piece = bytes.subarray(at, Math.min(end, at + step));
      this.sentBytes += piece.length;
      if (!response.write(piece)) await drained(response);
      if (fault.rate !== undefined) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    if (fault.cutAfter !== undefined && end < bytes.length) {
      // A FIN behind all that was written: a reset would throw bytes away at the other end.
      response.flushHeaders();
      response.socket?.end();
    } else if (fault.stallAfter === undefined || end >= bytes.length) response.end();
  }
}

/** Resolves when more may be written, or nothing more can be. */
function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done).off('close', done);
      resolve();
    };
    response.on('drain', done).on('close', done);
  });
}

/**
 * Stands in for native's template and holds receive/ to its contract: whatever is marked can be
 * read at that moment, by the name that the slot file on disk has, with the right bytes.
 */
export class WatchingTemplate implements NativeTemplate {
  readonly rows: number;
  readonly contents: number;
  readonly parts: number;
  readonly options: TemplateOptions;
  readonly states: Uint8Array;
  readonly arrivedParts = new Set<number>();
  readonly errnos = new Map<number, number>();
  readonly violations: string[] = [];
  closed = false;
  readonly #toc: Toc;
  readonly #changed: (() => void)[] = [];

  constructor(options: TemplateOptions) {
    this.options = options;
    this.#toc = new Toc(readFileSync(options.tocPath));
    this.rows = this.#toc.rows;
    this.contents = this.#toc.contents;
    this.parts = this.#toc.parts;
    this.states = new Uint8Array(this.contents);
  }

  #slot(content: number): string {
    const slots = readFileSync(this.options.digestsPath);
    return slots.toString('hex', content * 32, content * 32 + 32);
  }

  /** Bytes of a ready content, found as native finds them. */
  read(content: number): Buffer {
    const hex = this.#slot(content);
    const durable = join(this.options.contentDir, hex.slice(0, 2), hex.slice(2));
    for (const path of [durable, join(this.options.incomingDir, hex), durable]) {
      try {
        return readFileSync(path);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      }
    }
    throw new Error(`content ${content} (${hex}) is nowhere`);
  }

  markReady(contents: Uint32Array): void {
    for (const content of contents) {
      try {
        const data = this.read(content);
        if (
          sha256(data) !== this.#slot(content) ||
          data.length !== this.#toc.contentSize(content)
        ) {
          this.violations.push(`content ${content} has other bytes`);
        }
      } catch (error) {
        this.violations.push(String(error));
      }
      this.states[content] = CONTENT_STATE.RoLayer;
    }
    this.#change();
  }

  markParts(parts: Uint32Array): void {
    for (const part of parts) {
      const content = this.#toc.contentOfPart(part);
      const index = part - this.#toc.firstPart(content);
      const path = join(this.options.incomingDir, `${this.options.partialPrefix}.${content}`);
      const bytes = this.#toc.partSize(content, index);
      if (statSync(path).size < index * PART_BYTES + bytes)
        this.violations.push(`part ${part} is not there`);
      this.arrivedParts.add(part);
      if (this.states[content] === CONTENT_STATE.Empty)
        this.states[content] = CONTENT_STATE.Partial;
    }
    this.#change();
  }

  markFailed(contents: Uint32Array, errno: number): void {
    for (const content of contents) {
      this.states[content] = CONTENT_STATE.Failed;
      this.errnos.set(content, errno);
    }
    this.#change();
  }

  clearFailed(contents: Uint32Array): void {
    for (const content of contents) {
      if (this.states[content] !== CONTENT_STATE.Failed) continue;
      const first = this.#toc.firstPart(content);
      const any = Array.from({ length: this.#toc.partCount(content) }, (_, i) => first + i).some(
        (p) => this.arrivedParts.has(p),
      );
      this.states[content] = any ? CONTENT_STATE.Partial : CONTENT_STATE.Empty;
    }
    this.#change();
  }

  forget(contents: Uint32Array): void {
    for (const content of contents) {
      this.states[content] = CONTENT_STATE.Empty;
      const first = this.#toc.firstPart(content);
      for (let i = 0; i < this.#toc.partCount(content); i++) this.arrivedParts.delete(first + i);
    }
    this.#change();
  }

  state(content: number): number {
    return this.states[content]!;
  }

  waiting(): number {
    return 0;
  }

  close(): void {
    this.closed = true;
  }

  #change(): void {
    for (const changed of this.#changed.splice(0)) changed();
  }

  /** Resolves when the states satisfy `wanted`. */
  async until(wanted: () => boolean, ms = 120_000): Promise<void> {
    const deadline = performance.now() + ms;
    while (!wanted()) {
      const left = deadline - performance.now();
      if (left <= 0) throw new Error('the template did not reach the wanted state in time');
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.min(left, 50));
        this.#changed.push(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }
}
