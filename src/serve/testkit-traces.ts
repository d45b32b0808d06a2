// What the tests of traces and orders share: traces as JSON, and what stands where in a bundle.
import { setTimeout as sleep } from 'node:timers/promises';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeFrame, decodeHeader, parsePreamble } from '../delta/bundle-decode.ts';
import type { ImageDetail, TraceReceipt } from '../delta/protocol.ts';
import { type Answer, ask } from './testkit.ts';

/** A trace that opens `paths` one after the other, each read whole. */
export function traceOf(
  image: string,
  paths: readonly string[],
  more: Record<string, unknown> = {},
): string {
  return JSON.stringify({
    group: 'default',
    image,
    start: '2026-01-02T03:04:05.678Z',
    end: '2026-01-02T03:04:06.678Z',
    seq: paths.map((f, i) => ({ f, s: 0, a: i * 1_000_000, w: 0 })),
    ...more,
  });
}

export function report(
  url: string,
  body: string | Buffer,
  headers: Record<string, string> = {},
): Promise<Answer> {
  return ask(`${url}/v1/traces`, { method: 'POST', body, headers });
}

/** Reports a trace, and waits until what it changes is in force. */
export async function reported(url: string, body: string): Promise<TraceReceipt> {
  const answer = await report(url, body);
  if (answer.status > 201) throw new Error(`${answer.status} ${answer.body}`);
  const receipt = answer.json() as TraceReceipt;
  for (const image of receipt.images) await settled(url, image);
  return receipt;
}

/** Waits until an image's order is in force. */
export async function settled(url: string, image: string): Promise<ImageDetail> {
  for (let i = 0; i < 600; i++) {
    const detail = (await ask(`${url}/v1/images/${image}`)).json() as ImageDetail;
    if (detail.order.settled) return detail;
    await sleep(20);
  }
  throw new Error(`the order of ${image} does not settle`);
}

export interface Order {
  id: string;
  /** A path for each part, in transfer order; `#N` for parts but the first. */
  paths: string[];
}

/** What a bundle brings first. */
export function orderOf(bundle: Buffer): Order {
  const preamble = bundle.subarray(0, PREAMBLE_BYTES);
  const { headerBytes } = parsePreamble(preamble);
  const header = decodeHeader(
    preamble,
    bundle.subarray(PREAMBLE_BYTES, PREAMBLE_BYTES + headerBytes),
  );
  const { toc } = header;
  const paths = header.frames
    .flatMap((frame) =>
      decodeFrame(header, frame, bundle.subarray(frame.offset, frame.offset + frame.bytes)),
    )
    .map(
      ({ content, index }) => toc.path(toc.firstRow(content)) + (index === 0 ? '' : `#${index}`),
    );
  return { id: header.preamble.digest, paths };
}

/** The bundle that the server has now for an image. */
export async function orderNow(url: string, image: string, bases: string[] = []): Promise<Order> {
  const base = bases.map((digest) => `&base=${digest}`).join('');
  const answer = await ask(`${url}/v1/delta?image=${image}&platform=linux/amd64${base}`);
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.body}`);
  return orderOf(answer.body);
}
