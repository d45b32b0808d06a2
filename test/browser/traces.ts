// Traces as runs of real services look, of any size, and always the same.
import { imageFiles } from '../../src/optimize/match.ts';
import type { RankTarget } from '../../src/optimize/ranks.ts';
import { type ReportInput, reportInput } from '../../src/optimize/report-html.ts';
import type { TraceItem, Tracer } from '../../src/trace/tracer.ts';

const IMAGE = 'registry.example/team/service:1.2.3';
const DIGEST = `sha256:${'0123456789abcdef'.repeat(4)}`;

const START_NS = 1_760_000_000_000_000_000n;

/** Numbers from 0 to 1 that look random (the minimal standard generator). */
function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
}

const FOLDERS = ['usr/lib/python3/dist-packages', 'usr/lib/x86_64-linux-gnu', 'etc', 'usr/share'];

function itemAt(i: number, count: number, random: () => number): TraceItem {
  const folder = FOLDERS[Math.floor(random() * FOLDERS.length)]!;
  const sizeBytes = Math.round(40 * 10 ** (random() * 4.2));
  const accessNs = Math.round(4e9 * (i / count) ** 1.4 + random() * 2e6);
  // Most files come ahead of time, some late, some were there before.
  const luck = random();
  const arrivedNs =
    luck < 0.1
      ? 0
      : Math.round(luck < 0.8 ? accessNs * (0.2 + 0.7 * random()) : accessNs + random() * 3e8);
  return {
    path: `${folder}/module${i % 97}/part-${i}.so.${i % 7}`,
    layer: i % 3,
    accessNs,
    waitNs: Math.max(0, arrivedNs - accessNs),
    sizeBytes,
    arrivedNs,
  };
}

/** A large file of which three ranges are read. */
function largeItem(accessNs: number): TraceItem {
  const MiB = 1 << 20;
  const range = (part: number, later: number, waitNs: number) => ({
    offsetBytes: part * MiB,
    lengthBytes: MiB / 2,
    accessNs: accessNs + later,
    waitNs,
  });
  return {
    path: 'usr/lib/x86_64-linux-gnu/libLLVM.so.1',
    layer: 1,
    accessNs,
    waitNs: 0,
    sizeBytes: 30 * MiB,
    arrivedNs: accessNs + 900e6,
    ranges: [range(0, 1e6, 80e6), range(29, 90e6, 210e6), range(12, 400e6, 120e6)],
  };
}

const LINE = { bytesPerSecond: 12.5e6, roundTripMs: 150 };

/** An image that holds the run's files, and as many that nobody reads. */
function imageOf(items: readonly TraceItem[]): RankTarget {
  const files = items.flatMap(({ path, sizeBytes = 0 }) => [
    { path, sizeBytes, digest: `d ${path}` },
    { path: `${path}.doc`, sizeBytes: 2 * sizeBytes, digest: `doc ${path}` },
  ]);
  files.sort((x, y) => (x.path < y.path ? -1 : 1));
  return { digest: DIGEST, image: IMAGE, files: imageFiles(files) };
}

/** A run of `count` files; with what the simulator says of it, unless told otherwise. */
export function reportOf(count: number, simulated = true): ReportInput {
  const random = numbers(count + 7);
  const items = Array.from({ length: count - 1 }, (_, i) => itemAt(i, count, random));
  const seq = [...items, largeItem(1.2e9)].sort((x, y) => x.accessNs - y.accessNs);
  const runs = new Map(seq.map(({ path }) => [path, 1 + Math.floor(random() * 5)]));
  const tracer: Tracer = {
    group: 'default',
    image: IMAGE,
    digest: DIGEST,
    platform: 'linux/amd64',
    startNs: START_NS,
    endNs: START_NS + 30_000_000_000n,
    seq,
    received: Array.from({ length: 200 }, (_, i) => ({
      atNs: Math.round(i * 25e6),
      bytes: i * 310_000,
    })),
  };
  const image = { target: imageOf(seq), layout: { headerBytes: 40_000, ratio: 0.4 }, line: LINE };
  const input = simulated ? reportInput(tracer, [], image) : reportInput(tracer, []);
  return { ...input, runs: { total: 5, byPath: runs } };
}
