// What the tests of serve/ share: root filesystem tars, servers in temporary directories, and a plain
// HTTP client that hides nothing.
import { mkdtemp, rm } from 'node:fs/promises';
import { type IncomingHttpHeaders, type RequestOptions, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { pino } from 'pino';
import { pack } from 'tar-stream';
import type { IntakeEvent } from '../delta/protocol.ts';
import { type RunningServer, type ServerOptions, startServer } from './server.ts';

/** No output; FIRSTLIGHT_LOG turns it on. */
export const quiet = pino({ level: process.env.FIRSTLIGHT_LOG ?? 'silent' });

/** A tar of regular files. */
export async function makeTar(files: Record<string, string | Buffer>): Promise<Buffer> {
  const tar = pack();
  for (const [name, content] of Object.entries(files)) {
    tar.entry({ name, mtime: new Date(1_700_000_000_000), mode: 0o644 }, content as Buffer);
  }
  tar.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of tar) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

/** Bytes that compress badly and are the same for the same seed. */
export function noise(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  let x = (seed * 2654435761 + 1) >>> 0;
  for (let i = 0; i < bytes; i++) {
    x ^= x << 13;
    x >>>= 0;
    x ^= x >>> 17;
    x ^= x << 5;
    x >>>= 0;
    data[i] = x & 0xff;
  }
  return data;
}

export async function makeDirectory(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'firstlight-serve-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** A server on a free port; ends with the test. */
export async function serve(
  t: ExecutionContext,
  options: Partial<ServerOptions> = {},
): Promise<RunningServer & { dataDir: string }> {
  const dataDir = options.dataDir ?? (await makeDirectory(t));
  const server = await startServer({ listen: '127.0.0.1:0', log: quiet, ...options, dataDir });
  t.teardown(() => server.close());
  return { ...server, dataDir };
}

export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
  json(): unknown;
}

/** One request on its own connection. */
export function ask(
  url: string,
  options: RequestOptions & { body?: Buffer | string } = {},
): Promise<Answer> {
  const { body, ...rest } = options;
  return new Promise((resolve, reject) => {
    const sent = request(url, { agent: false, ...rest }, (answer) => {
      const chunks: Buffer[] = [];
      answer.on('data', (chunk: Buffer) => chunks.push(chunk));
      answer.on('error', reject);
      answer.on('end', () => {
        const all = Buffer.concat(chunks);
        resolve({
          status: answer.statusCode!,
          headers: answer.headers,
          body: all,
          json: () => JSON.parse(all.toString()),
        });
      });
    });
    sent.on('error', reject);
    sent.end(body);
  });
}

/** Adds a root filesystem and gives the events of the answer. */
export async function addRootfs(
  url: string,
  name: string,
  tar: Buffer,
  more = '&platform=linux/amd64',
): Promise<IntakeEvent[]> {
  const answer = await ask(`${url}/v1/images?kind=rootfs&name=${encodeURIComponent(name)}${more}`, {
    method: 'POST',
    body: tar,
  });
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.body}`);
  return answer.body
    .toString()
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as IntakeEvent);
}
