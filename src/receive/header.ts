// The start of a bundle: reads and checks it, and finds the contents that the worker's own images
// give to it. What does not live here: asking for it, and what follows it.
import type { BundleHeader } from '../delta/bundle.ts';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader, parsePreamble } from '../delta/bundle-decode.ts';
import { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { LayerStore } from '../store/layer-store.ts';
import type { BodyReader } from './body-reader.ts';

/** A checked header with its own bytes. */
export interface ReceivedHeader {
  header: BundleHeader;
  /** Preamble and compressed header, as they came. */
  raw: Buffer;
  /** When its last byte was in, before any of it was decoded: ms since 1970. */
  arrivedAt: number;
}

/** Reads preamble and header. @throws FirstlightError 'corrupt' naming the field */
export async function readHeader(body: BodyReader): Promise<ReceivedHeader> {
  const preamble = await body.take(PREAMBLE_BYTES);
  const compressed = await body.take(parsePreamble(preamble).headerBytes);
  const arrivedAt = Date.now();
  return {
    header: decodeHeader(preamble, compressed),
    raw: Buffer.concat([preamble, compressed]),
    arrivedAt,
  };
}

/** Decodes a header out of the bytes that `readHeader` kept. */
export function decodeStored(raw: Buffer): BundleHeader {
  return decodeHeader(raw.subarray(0, PREAMBLE_BYTES), raw.subarray(PREAMBLE_BYTES));
}

/** What the bases of a bundle give. */
export interface FromBases {
  /** Contents that are in the store, with their digests. */
  found: { content: number; digest: Buffer }[];
  /** Bases that should have a content and have not: it must come from elsewhere. */
  lacking: string[];
}

/**
 * Looks up the contents that a header leaves out because a base has them. Found ones are claimed, so
 * call this under the store's guard.
 */
export async function findInBases(store: LayerStore, header: BundleHeader): Promise<FromBases> {
  const bases = await Promise.all(header.bases.map(({ digest }) => readBase(store, digest)));
  const found: FromBases['found'] = [];
  const lacking = new Set<string>();
  for (let content = 0; content < header.toc.contents; content++) {
    const index = header.haveBase[content]!;
    if (index < 0) continue;
    const base = bases[index];
    const at = header.haveContent[content]! * 32;
    if (
      base === undefined ||
      at + 32 > base.digests.length ||
      !store.contents.claim(base.digests, at)
    ) {
      lacking.add(header.bases[index]!.digest);
      continue;
    }
    const bytes = base.toc.contentSize(header.haveContent[content]!);
    if (bytes !== header.toc.contentSize(content)) {
      throw new FirstlightError(
        'corrupt',
        `bundle: content ${content} has ${header.toc.contentSize(content)} bytes, and ${bytes} in its base`,
      );
    }
    found.push({ content, digest: base.digests.subarray(at, at + 32) });
  }
  return { found, lacking: [...lacking] };
}

async function readBase(store: LayerStore, digest: string) {
  const image = store.findImage(digest);
  if (image === undefined) return undefined;
  const [toc, digests] = await Promise.all([image.read('toc'), image.read('contents')]);
  return { toc: new Toc(toc), digests };
}
