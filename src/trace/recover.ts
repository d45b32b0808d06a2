// Journals that a dead recorder left: what they hold up to the first line that is torn or broken
// becomes a trace file. The lines' meaning stands in writer.ts.
import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import {
  type BrokenTrace,
  JOURNAL_SUFFIX,
  namesIn,
  readBounded,
  saveTrace,
  TRACE_SUFFIX,
} from './files.ts';
import { Fields, parseJson } from './json.ts';
import {
  lastMomentNs,
  parseDigest,
  parseHead,
  parseItem,
  parseRange,
  parseReceived,
  RECEIVED_MAX,
} from './parse.ts';
import {
  byAccessTime,
  type ReceivedPoint,
  TRACE_ITEMS_MAX,
  TRACE_NS_MAX,
  TRACE_RANGES_MAX,
  type TraceItem,
  type Tracer,
  type TracerHead,
} from './tracer.ts';

/** A journal says more of an item on lines of its own, so it is longer than its trace. */
const JOURNAL_MAX_BYTES = 128 << 20;
const LINE_LIMITS = { bytes: 64 << 10, depth: 4, containers: 16 };
const NEWLINE = 0x0a;

class Journal {
  readonly items: TraceItem[] = [];
  readonly received: ReceivedPoint[] = [];
  #ranges = 0;

  take(fields: Fields): void {
    const index = fields.count('i', TRACE_ITEMS_MAX);
    const received = fields.get('recv');
    if (received !== undefined) this.#receive(parseReceived(received, fields), fields);
    else if (index === undefined) this.#add(parseItem(fields.value, fields.where));
    else this.#more(index, fields);
  }

  #add(item: TraceItem): void {
    if (this.items.length >= TRACE_ITEMS_MAX) {
      throw new FirstlightError('corrupt', `over ${TRACE_ITEMS_MAX} items`);
    }
    this.items.push(item);
  }

  #receive(point: ReceivedPoint, fields: Fields): void {
    if (this.received.length >= RECEIVED_MAX) throw fields.bad('recv', 'stands there too often');
    this.received.push(point);
  }

  #more(index: number, fields: Fields): void {
    const item = this.items[index];
    if (item === undefined) throw fields.bad('i', 'names no item');
    const n = fields.count('n', TRACE_RANGES_MAX);
    if (n !== undefined) this.#range(item, n, fields);
    else if (fields.get('f') !== undefined) {
      Object.assign(item, { ...parseItem(fields.value, fields.where), path: item.path });
    } else if (fields.get('v') !== undefined) {
      item.arrivedNs = fields.count('v', TRACE_NS_MAX)!;
      const digest = parseDigest(fields);
      if (digest !== undefined) item.digest = digest;
    } else item.ranges ??= [];
  }

  #range(item: TraceItem, n: number, fields: Fields): void {
    item.ranges ??= [];
    const [range] = fields.list('r', 1) ?? [];
    // Numbers come in order, so that a gap is a broken line.
    if (n > item.ranges.length) throw fields.bad('n', 'skips a range');
    if (n === item.ranges.length && ++this.#ranges > TRACE_RANGES_MAX) {
      throw fields.bad('n', `is over ${TRACE_RANGES_MAX} ranges in all`);
    }
    item.ranges[n] = parseRange(range, fields, item.accessNs);
  }
}

/** What a journal holds up to its first torn or broken line. @throws where not even its head can be read */
export function parseJournal(bytes: Buffer, what: string): Tracer {
  let head: TracerHead | undefined;
  const journal = new Journal();
  for (let start = 0, line = 1; start < bytes.length; line++) {
    const end = bytes.indexOf(NEWLINE, start);
    if (end === -1) break;
    const where = `${what}: line ${line}`;
    try {
      const fields = new Fields(parseJson(bytes.subarray(start, end), LINE_LIMITS, where), where);
      if (head === undefined) head = parseHead(fields);
      else journal.take(fields);
    } catch (error) {
      if (head === undefined) throw error;
      // What follows a broken line cannot be trusted: items are numbered by their lines.
      break;
    }
    start = end + 1;
  }
  if (head === undefined) throw new FirstlightError('corrupt', `${what} holds no whole line`);
  const seq = journal.items.sort(byAccessTime);
  const { received } = journal;
  return {
    ...head,
    endNs: head.startNs + BigInt(lastMomentNs(seq)),
    seq,
    ...(received.length === 0 ? {} : { received }),
    recovered: true,
  };
}

/** What became of the journals of a directory. */
export interface Recovered {
  /** Paths of the traces that were made. */
  traces: string[];
  /** Journals that could not be used. They are kept as `<name>.bad`. */
  broken: BrokenTrace[];
}

/**
 * Turns the journals of dead recorders into traces. Call it where no other process records in the
 * directory: the daemon that owns the root does at its start.
 * @param active  ids that are being recorded now
 * @throws FirstlightError where the directory cannot be read or written (`no-space`); journals stay
 */
export async function recoverJournals(
  directory: string,
  active: ReadonlySet<string> = new Set(),
): Promise<Recovered> {
  const traces: string[] = [];
  const broken: BrokenTrace[] = [];
  await removeLeftovers(directory, active);
  const finished = new Set(await namesIn(directory, TRACE_SUFFIX));
  for (const name of await namesIn(directory, JOURNAL_SUFFIX)) {
    const id = name.slice(0, -JOURNAL_SUFFIX.length);
    if (active.has(id)) continue;
    const path = join(directory, name);
    let tracer: Tracer | undefined;
    try {
      // A finished trace was renamed into place just before its journal would have gone.
      if (!finished.has(id + TRACE_SUFFIX)) {
        tracer = parseJournal(await readBounded(path, JOURNAL_MAX_BYTES), path);
      }
    } catch (error) {
      const failure = toFirstlightError(error);
      if (failure.kind !== 'corrupt' && failure.kind !== 'unsupported') throw failure;
      broken.push({ path, error: failure });
      await rename(path, `${path}.bad`);
      continue;
    }
    if (tracer !== undefined && tracer.seq.length > 0) {
      traces.push(await saveTrace(directory, id, tracer));
    }
    await rm(path, { force: true });
  }
  return { traces, broken };
}

/** Removes what a crash left of {@link saveTrace}: whole only once it has been renamed. */
async function removeLeftovers(directory: string, active: ReadonlySet<string>): Promise<void> {
  for (const name of await namesIn(directory, '.new')) {
    const id = name.replace(/\.[0-9a-f]{8}\.new$/, '');
    if (id !== name && !active.has(id)) await rm(join(directory, name), { force: true });
  }
}
