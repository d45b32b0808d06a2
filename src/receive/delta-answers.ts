// What is asked of a delta server, and what its answers say: addresses, heads, lists, and its errors in the project's
// terms. What does not live here: connections (connections.ts), and who asks (delta-client.ts).
import type { Readable } from 'node:stream';
import * as v from 'valibot';
import {
  API,
  type ChainImage,
  type ErrorBody,
  FRAMES_HEADER,
  PATCH_FRAMES,
} from '../delta/protocol.ts';
import { FirstlightError, isErrorKind } from '../errors/errors.ts';
import { certificateHint } from './secure-connect.ts';

/** Most of an error answer that is read. */
export const ERROR_BODY_BYTES = 64 << 10;
/** Most of a list of images by chain id that is read. */
export const CHAINS_BYTES_MAX = 4 << 20;

/** The head of an answer. */
export interface PieceHead {
  statusCode: number;
  headers: Record<string, string | string[] | undefined>;
  body: Readable;
}

/** What is asked for. */
export interface DeltaRequest {
  /** NAME:TAG or `sha256:...`. */
  image: string;
  /** os/arch[/variant]. */
  platform: string;
  /** Digests of images that the worker holds. */
  bases: string[];
  /** Whether frames may be patches against these. */
  patches: boolean;
}

export function deltaPath({ image, platform, bases }: DeltaRequest): string {
  const query = new URLSearchParams({ image, platform });
  for (const base of bases) query.append('base', base);
  return `${API.delta}?${query}`;
}

export function deltaHeaders({ patches }: DeltaRequest): Record<string, string> {
  return patches ? { [FRAMES_HEADER]: PATCH_FRAMES } : {};
}

export function header(answer: Pick<PieceHead, 'headers'>, name: string): string {
  const value = answer.headers[name];
  return typeof value === 'string' ? value : '';
}

/** `Content-Range: bytes FROM-LAST/TOTAL`, with the end exclusive. @throws FirstlightError 'corrupt' */
export function contentRange(head: PieceHead): { from: number; to: number; total: number } {
  const value = head.headers['content-range'];
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(typeof value === 'string' ? value : '');
  if (match === null)
    throw new FirstlightError(
      'corrupt',
      'the answer of the server is a part that does not name its range',
    );
  return { from: Number(match[1]), to: Number(match[2]) + 1, total: Number(match[3]) };
}

const CHAINS = v.array(
  v.object({
    digest: v.string(),
    name: v.exactOptional(v.string()),
    platform: v.string(),
    index: v.pipe(v.number(), v.integer(), v.minValue(0)),
    layers: v.array(v.string()),
  }),
);

export function parseChains(text: string, server: string): ChainImage[] {
  try {
    return v.parse(CHAINS, JSON.parse(text));
  } catch (cause) {
    throw new FirstlightError('corrupt', `${server} does not answer as a delta server`, {
      hint: 'check the URL given as --server',
      cause,
    });
  }
}

export async function readSome(body: Readable, most: number): Promise<string> {
  let text = '';
  try {
    for await (const chunk of body) {
      text += (chunk as Buffer).toString('utf8');
      if (text.length > most) break;
    }
  } catch {
    // The status alone must do: the connection ended inside the explanation.
  }
  return text;
}

const REFUSALS = { 401: 'unauthorized', 403: 'permission' } as const;

/** The error of an answer that is not what was asked for. */
export function errorOf(statusCode: number, text: string, server: string): FirstlightError {
  try {
    const { error } = JSON.parse(text) as ErrorBody;
    if (isErrorKind(error.kind) && typeof error.message === 'string') {
      const hint = typeof error.hint === 'string' ? { hint: error.hint } : {};
      return new FirstlightError(error.kind, error.message, hint);
    }
  } catch {
    // No JSON, or not ours: a proxy in between. The status is all there is.
  }
  const kind =
    statusCode >= 500 ? 'unreachable' : (REFUSALS[statusCode as 401 | 403] ?? 'unsupported');
  return new FirstlightError(kind, `${server} answered with HTTP status ${statusCode}`, {
    hint: 'check the URL given as --server',
  });
}

/** An error of the connection in the project's terms. */
export function networkError(error: unknown, server: string): FirstlightError {
  if (error instanceof FirstlightError) return error;
  const { code, name, message } = error as NodeJS.ErrnoException;
  const hint = certificateHint(code) ?? 'check that the server runs and that --server names it';
  if (
    code === 'UND_ERR_HEADERS_TIMEOUT' ||
    code === 'UND_ERR_BODY_TIMEOUT' ||
    name === 'TimeoutError'
  ) {
    return new FirstlightError('timeout', `${server} did not answer in time`, {
      hint,
      cause: error,
    });
  }
  const why =
    code === undefined ? message : `${code}${message.includes(code) ? '' : `: ${message}`}`;
  return new FirstlightError('unreachable', `${server} cannot be reached (${why})`, {
    hint,
    cause: error,
  });
}
