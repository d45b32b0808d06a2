// Images made for tests: trees as plain objects, random trees, and bundles of them with their
// contents in memory. Only tests import it.
import { hash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { type Inode, makeDirectory, type TreeNode } from '../image/tree.ts';
import {
  type BundleHeader,
  FRAME_KIND,
  type FrameInfo,
  PREAMBLE,
  PREAMBLE_BYTES,
} from './bundle.ts';
import { decodeFrame, decodeHeader, parsePreamble } from './bundle-decode.ts';
import {
  type EncodeBase,
  type EncodedBundle,
  type EncodeInput,
  encodeBundle,
} from './bundle-encode.ts';
import { joinSections, packHeader, SECTIONS, type SectionName } from './bundle-header.ts';
import { type BaseRange, measureRanges, readBaseBytes } from './patch-table.ts';
import { Toc } from './toc.ts';
import { buildToc } from './toc-build.ts';
import { VarintReader } from './varint.ts';
import { decompressExactly } from './zstd.ts';

/** An image whose contents are in memory, by hex digest. */
export interface TestImage {
  manifest: Buffer;
  config: Buffer;
  toc: Toc;
  digests: Buffer;
  contents: Map<string, Buffer>;
}

export function sha256Hex(bytes: Uint8Array): string {
  return hash('sha256', bytes, 'hex');
}

/** Bad input: what is done with it throws 'corrupt', and names the field. */
export function refuses(
  t: Pick<ExecutionContext, 'throws' | 'is'>,
  decode: () => unknown,
  message: RegExp,
): void {
  const error = t.throws(decode, { instanceOf: FirstlightError, message });
  t.is(error.kind, 'corrupt');
}

/** Attributes of a test's inode; a file's `data` becomes size and digest. */
export type Spec = Partial<Omit<Inode, 'size' | 'digest'>> & {
  data?: Buffer | string;
  /** Entries of a directory; the same Spec object under two names is one inode with two names. */
  entries?: Record<string, Spec>;
};

/** Builds a tree out of nested specs. */
export function makeTree(root: Record<string, Spec>, contents: Map<string, Buffer>): TreeNode {
  const inodes = new Map<Spec, Inode>();
  const node = (name: string, spec: Spec): TreeNode => {
    const { data, entries, ...attributes } = spec;
    if (entries !== undefined) {
      const directory = makeDirectory(name, 0);
      Object.assign(directory.inode, attributes);
      for (const [child, childSpec] of Object.entries(entries))
        directory.children!.set(child, node(child, childSpec));
      return directory;
    }
    let inode = inodes.get(spec);
    if (inode === undefined) {
      inode = {
        ...{ type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSec: 1, mtimeNsec: 0, layer: 0 },
        ...attributes,
        size: 0,
      } as Inode;
      const bytes = Buffer.from(data ?? '');
      if (inode.type === 'file' && bytes.length > 0) {
        inode.size = bytes.length;
        inode.digest = sha256Hex(bytes);
        contents.set(inode.digest, bytes);
      }
      inodes.set(spec, inode);
    }
    return { name, inode };
  };
  return node('', { entries: root });
}

/** A manifest and a config that belong together, with `layers` layers. */
export function makeManifest(layers: number): { manifest: Buffer; config: Buffer } {
  const digest = (i: number, seed: string) => `sha256:${sha256Hex(Buffer.from(`${seed} ${i}`))}`;
  const numbers = Array.from({ length: layers }, (_, i) => i);
  const config = Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      rootfs: { type: 'layers', diff_ids: numbers.map((i) => digest(i, 'tar')) },
    }),
  );
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      config: { digest: `sha256:${sha256Hex(config)}`, size: config.length },
      layers: numbers.map((i) => ({ digest: digest(i, 'blob'), size: 1000 + i })),
    }),
  );
  return { manifest, config };
}

/** An image of a tree. */
export function makeImage(tree: TreeNode, contents: Map<string, Buffer>, layers = 1): TestImage {
  const { bytes, digests } = buildToc(tree);
  return { ...makeManifest(layers), toc: new Toc(bytes), digests, contents };
}

/** An image of nested specs. */
export function imageOf(root: Record<string, Spec>, layers = 1): TestImage {
  const contents = new Map<string, Buffer>();
  return makeImage(makeTree(root, contents), contents, layers);
}

/** The image as something whose contents the worker has. */
export function asBase(image: TestImage): EncodeBase {
  return { digest: `sha256:${sha256Hex(image.manifest)}`, toc: image.toc, digests: image.digests };
}

/** Encoder input for an image; small levels and no threads, so that tests are quick. */
export function inputOf(image: TestImage, more: Partial<EncodeInput> = {}): EncodeInput {
  return {
    manifest: image.manifest,
    config: image.config,
    toc: image.toc,
    digests: image.digests,
    bases: [],
    readContent: async (digest, offset, bytes) =>
      image.contents.get(digest)!.subarray(offset, offset + bytes),
    level: 1,
    patchLevel: 9,
    threads: 0,
    ...more,
  };
}

/** Runs `body` with a directory of its own, which is gone afterwards. */
export async function withDirectory<T>(body: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-delta-'));
  try {
    return await body(directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** An image's bundle, and what the encoder says of it. */
export async function encodedOf(
  image: TestImage,
  more: Partial<EncodeInput> = {},
): Promise<EncodedBundle & { bundle: Buffer }> {
  return await withDirectory(async (directory) => {
    const path = join(directory, 'bundle');
    const made = await encodeBundle(inputOf(image, more), path);
    return { ...made, bundle: await readFile(path) };
  });
}

/** The bytes of an image's bundle. */
export async function bundleOf(image: TestImage, more: Partial<EncodeInput> = {}): Promise<Buffer> {
  return (await encodedOf(image, more)).bundle;
}

/** Bytes that do not compress, the same for the same seed. */
export function noise(bytes: number, seed: number): Buffer {
  const data = Buffer.alloc(bytes);
  let x = (seed * 2654435761 + 1) >>> 0;
  for (let i = 0; i < bytes; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    data[i] = x >>> 24;
  }
  return data;
}

/** Splits a bundle and decodes its header. */
export function headerOf(bundle: Buffer) {
  const { headerBytes } = parsePreamble(bundle);
  return decodeHeader(
    bundle.subarray(0, PREAMBLE_BYTES),
    bundle.subarray(PREAMBLE_BYTES, PREAMBLE_BYTES + headerBytes),
  );
}

/** What a patch frame is coded against; undefined for other frames. */
export async function baseBytesOf(
  header: BundleHeader,
  frame: FrameInfo,
  images: readonly TestImage[],
): Promise<Buffer | undefined> {
  if (frame.kind !== FRAME_KIND.patch) return undefined;
  const bases = header.bases.map(
    ({ digest }) => images.find((image) => asBase(image).digest === digest)!,
  );
  const sizeOf = ({ base, content }: BaseRange) =>
    content < bases[base]!.toc.contents ? bases[base]!.toc.contentSize(content) : undefined;
  const lengths = measureRanges(frame.ranges, sizeOf, `frame ${frame.index}`);
  return readBaseBytes(frame.ranges, lengths, async ({ base, content, offset }, into) => {
    const { digests, contents } = bases[base]!;
    const hex = digests.toString('hex', content * 32, content * 32 + 32);
    into.set(contents.get(hex)!.subarray(offset, offset + into.length));
  });
}

/** All parts of a bundle without patches, in transfer order. */
export function partsOfBundle(bundle: Buffer) {
  const header = headerOf(bundle);
  return header.frames.flatMap((frame) =>
    decodeFrame(header, frame, bundle.subarray(frame.offset, frame.offset + frame.bytes)),
  );
}

const nameByte = fc.integer({ min: 1, max: 255 }).filter((byte) => byte !== 0x2f);
/** Names of any bytes that Linux allows, mostly short ones that collide. */
export const anyName = fc
  .oneof(
    { weight: 4, arbitrary: fc.constantFrom('a', 'b', 'c', 'lib', 'libfoo.so.1', 'libfoo.so.1.2') },
    {
      weight: 1,
      arbitrary: fc
        .array(nameByte, { minLength: 1, maxLength: 255 })
        .map((bytes) => Buffer.from(bytes).toString('latin1')),
    },
  )
  .filter((name) => name !== '.' && name !== '..');

const u32 = fc.oneof(fc.constantFrom(0, 1000, 2 ** 32 - 2), fc.nat());
const anyXattrs = fc.option(
  fc.dictionary(
    fc.constantFrom('user.a', 'user.b', 'security.capability', 'user.\xff'),
    fc.uint8Array({ maxLength: 40 }),
    { minKeys: 1, maxKeys: 3 },
  ),
  { nil: undefined, freq: 4 },
);

/** Attributes that every type of inode has. */
const anyAttributes = fc.record({
  mode: fc.constantFrom(0o644, 0o755, 0o4755, 0o1777, 0, 0o7777),
  uid: u32,
  gid: u32,
  mtimeSec: fc.oneof(fc.constant(1_700_000_000), fc.integer({ min: -(2 ** 40), max: 2 ** 40 })),
  mtimeNsec: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 999_999_999 })),
  layer: fc.nat({ max: 2 }),
  xattrs: anyXattrs,
});

type Draft = { kind: string; data: Uint8Array; target: string; major: number; minor: number } & {
  attributes: Omit<Partial<Inode>, 'xattrs'> & { xattrs?: Record<string, Uint8Array> };
};

const anyDraft: fc.Arbitrary<Draft> = fc.record({
  kind: fc.constantFrom('file', 'file', 'file', 'dir', 'dir', 'symlink', 'char', 'block', 'fifo'),
  data: fc.oneof(
    fc.constantFrom(Buffer.from('same'), Buffer.alloc(0)),
    fc.uint8Array({ maxLength: 300 }),
    fc.nat({ max: 3 }).map((i) => Buffer.alloc((1 << 20) + i * 700_000, `large ${i}`)),
  ),
  target: fc.constantFrom('a', '../b', '/usr/lib', '\xff\xfe'),
  major: fc.nat({ max: 0xfff }),
  minor: fc.nat({ max: 0xfffff }),
  attributes: anyAttributes,
}) as unknown as fc.Arbitrary<Draft>;

function toInode(draft: Draft, contents: Map<string, Buffer>): Inode {
  const { xattrs, ...attributes } = draft.attributes;
  const inode = { ...attributes, type: draft.kind, size: 0 } as Inode;
  if (xattrs !== undefined)
    inode.xattrs = new Map(Object.entries(xattrs).map(([k, v]) => [k, Buffer.from(v)]));
  if (draft.kind === 'file' && draft.data.length > 0) {
    const bytes = Buffer.from(draft.data);
    inode.size = bytes.length;
    inode.digest = sha256Hex(bytes);
    contents.set(inode.digest, bytes);
  } else if (draft.kind === 'symlink') inode.target = draft.target;
  else if (draft.kind === 'char' || draft.kind === 'block') {
    inode.major = draft.major;
    inode.minor = draft.minor;
  }
  return inode;
}

/**
 * Random images: each step puts a new inode, or a further name of an earlier one, into an earlier
 * directory.
 */
export const anyImage: fc.Arbitrary<TestImage> = fc
  .array(fc.record({ draft: anyDraft, name: anyName, at: fc.nat(), link: fc.nat({ max: 7 }) }), {
    maxLength: 40,
  })
  .map((steps) => {
    const contents = new Map<string, Buffer>();
    const root = makeDirectory('', 0);
    const directories = [root];
    const others: Inode[] = [];
    for (const { draft, name, at, link } of steps) {
      const parent = directories[at % directories.length]!;
      if (parent.children!.has(name)) continue;
      if (link === 0 && others.length > 0) {
        parent.children!.set(name, { name, inode: others[at % others.length]! });
        continue;
      }
      const node: TreeNode = { name, inode: toInode(draft, contents) };
      parent.children!.set(name, node);
      if (draft.kind === 'dir') {
        node.children = new Map();
        directories.push(node);
      } else others.push(node.inode);
    }
    return makeImage(root, contents, 3);
  });

/** Sections of a header, to be changed. */
export type Sections = Record<SectionName, Buffer>;

/** The header's sections, decompressed. */
export function sectionsOf(bundle: Buffer): Sections {
  const { headerBytes, headerRawBytes } = parsePreamble(bundle);
  const packed = bundle.subarray(PREAMBLE_BYTES, PREAMBLE_BYTES + headerBytes);
  const reader = new VarintReader(decompressExactly(packed, headerRawBytes, 'header'), 'header');
  const lengths = SECTIONS.map(() => reader.unsigned());
  return Object.fromEntries(
    SECTIONS.map((name, i) => [name, Buffer.from(reader.raw(lengths[i]!))]),
  ) as Sections;
}

/** A bundle with other sections, and a body of its own where one is given; all digests fit again. */
export function rebuild(bundle: Buffer, sections: Sections, body?: Buffer): Buffer {
  const { headerBytes } = parsePreamble(bundle);
  const frames = body ?? bundle.subarray(PREAMBLE_BYTES + headerBytes);
  const { preamble, header } = packHeader(joinSections(sections), frames.length);
  return Buffer.concat([preamble, header, frames]);
}

/** A bundle whose header, decompressed, is `raw`. */
export function withRawHeader(bundle: Buffer, raw: Buffer): Buffer {
  const { headerBytes, bodyBytes } = parsePreamble(bundle);
  const { preamble, header } = packHeader(raw, bodyBytes);
  return Buffer.concat([preamble, header, bundle.subarray(PREAMBLE_BYTES + headerBytes)]);
}

/** Puts the right digest into a preamble that a test has changed. */
export function signPreamble(bundle: Buffer): Buffer {
  const end = PREAMBLE_BYTES + bundle.readUInt32LE(PREAMBLE.headerBytes);
  bundle.fill(0, PREAMBLE.digest, PREAMBLE.digest + 32);
  hash('sha256', bundle.subarray(0, end), 'buffer').copy(bundle, PREAMBLE.digest);
  return bundle;
}
