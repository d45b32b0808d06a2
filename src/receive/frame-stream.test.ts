import { PassThrough, Readable } from 'node:stream';
import test from 'ava';
import { encode, makeImage, someFiles } from '../../test/receive/fixture.ts';
import { PREAMBLE_BYTES } from '../delta/bundle.ts';
import { decodeHeader } from '../delta/bundle-decode.ts';
import { FirstlightError } from '../errors/errors.ts';
import { BodyReader } from './body-reader.ts';
import { FramePlan } from './frame-plan.ts';
import { type AskRun, type FirstRun, FrameStream } from './frame-stream.ts';

/** About as many frames as files, none compressible. */
const IMAGE = makeImage(
  'stream',
  someFiles(
    'stream',
    Array.from({ length: 40 }, (_, i) => 150_000 + i),
  ),
);
/** A few frames of them. */
const AHEAD = 700_000;

async function makePlan() {
  const { bytes, headerBytes } = await encode(IMAGE);
  const header = decodeHeader(
    bytes.subarray(0, PREAMBLE_BYTES),
    bytes.subarray(PREAMBLE_BYTES, headerBytes),
  );
  const plan = new FramePlan(header, { bundlePath: '/b', etag: '"e"' }, () => false);
  return { bytes, plan };
}

const reader = (data: Buffer) =>
  new BodyReader(Readable.from(data.length > 0 ? [data] : []), (error) => error as Error);

/** A body that brings some bytes and then, after so many ms, the rest; without a time: nothing more. */
function paused(data: Buffer, firstBytes: number, restMs?: number): BodyReader {
  const body = new PassThrough();
  body.write(data.subarray(0, firstBytes));
  if (restMs !== undefined) setTimeout(() => body.end(data.subarray(firstBytes)), restMs);
  return new BodyReader(body, (error) => error as Error);
}

/** A stream that has little patience with connections; `ask` is also given how often it has been called before. */
function impatient(
  plan: FramePlan,
  ask: (
    from: number,
    to: number,
    signal: AbortSignal,
    index: number,
  ) => Promise<BodyReader | 'gone'>,
): FrameStream {
  let asks = 0;
  const counted: AskRun = async (from, to, signal) => ask(from, to, signal, asks++);
  return new FrameStream(plan, counted, () => undefined, undefined, 50);
}

/** A stream, what it has asked for, and how often it gave its connection back. */
async function makeStream(first?: (bytes: Buffer, plan: FramePlan) => FirstRun) {
  const { bytes, plan } = await makePlan();
  const asked: { from: number; to: number }[] = [];
  const seen = { released: 0, aborted: 0, asked, bytes, plan };
  const stream = new FrameStream(
    plan,
    async (from, to, signal) => {
      asked.push({ from, to });
      signal.addEventListener('abort', () => seen.aborted++);
      return reader(bytes.subarray(from, to));
    },
    () => seen.released++,
    first?.(bytes, plan),
  );
  return { stream, ...seen, seen };
}

/** Takes frames as the transfer does: what has come is missing no more. */
async function takeAll(stream: FrameStream, plan: FramePlan, before: (frame: number) => void) {
  const came: number[] = [];
  for (;;) {
    const next = await stream.next(AHEAD);
    if (next === undefined || next === 'gone') return came;
    if (next.data !== undefined) {
      came.push(next.frame);
      plan.busy(next.frame, 1);
    }
    before(next.frame + 1);
  }
}

test('every missing frame comes once, in order, and a bounded part of it is asked for at a time', async (t) => {
  const { stream, plan, bytes, asked, seen } = await makeStream();
  const most = Math.max(...plan.frames.map((frame) => frame.bytes));
  const came = await takeAll(stream, plan, (next) => {
    const taken = plan.frames[next]?.offset ?? bytes.length;
    t.true((asked.at(-1)?.to ?? 0) - taken <= 1.25 * AHEAD + 2 * most);
  });
  t.deepEqual(
    came,
    plan.frames.map(({ index }) => index),
  );
  t.is(
    asked.reduce((sum, { from, to }) => sum + to - from, 0),
    bytes.length - plan.frames[0]!.offset,
  );
  t.true(asked.length >= 6, `${asked.length} requests`);
  t.is(seen.released, 1);
  t.is(seen.aborted, 0);
});

test('what is fetched out of order before it is asked for does not come twice', async (t) => {
  const { stream, plan, asked, bytes } = await makeStream();
  const elsewhere = new Set<number>();
  const came = await takeAll(stream, plan, (next) => {
    // A reader at every other frame, a little behind what has been asked for.
    const frame = plan.frames.find(
      ({ index, offset }) => index % 2 === 1 && offset > asked.at(-1)!.to && plan.isMissing(index),
    );
    if (frame === undefined || elsewhere.has(next)) return;
    plan.busy(frame.index, 1);
    elsewhere.add(frame.index);
  });
  t.true(elsewhere.size > 3, `${elsewhere.size} frames`);
  t.deepEqual(
    [...came, ...elsewhere].sort((a, b) => a - b),
    plan.frames.map(({ index }) => index),
  );
  const twice = asked.reduce((sum, { from, to }) => sum + to - from, 0);
  const other = [...elsewhere].reduce((sum, frame) => sum + plan.frames[frame]!.bytes, 0);
  t.is(twice + other, bytes.length - plan.frames[0]!.offset);
});

test('it says what it has been asked for, and what comes before that', async (t) => {
  const { stream, plan, asked } = await makeStream();
  t.is(stream.ahead(0), undefined);
  await stream.next(AHEAD);
  const to = asked.at(-1)!.to;
  const inside = plan.frames.filter(({ index, offset }) => index > 0 && offset < to);
  for (const { index, offset } of inside) {
    const { bytes, soonBytes } = stream.ahead(index)!;
    t.is(bytes, offset - plan.frames[1]!.offset);
    t.true(bytes <= soonBytes);
  }
  t.is(stream.ahead(0), undefined, 'it has been taken');
  t.is(stream.ahead(inside.at(-1)!.index + 1), undefined);
  stream.destroy();
});

test('the answer that brought the header goes first; what follows is asked for at once beside it', async (t) => {
  const { stream, plan, asked, bytes } = await makeStream((data, { frames }) => ({
    body: reader(data.subarray(frames[0]!.offset, frames[10]!.offset)),
    end: 10,
  }));
  const asks: number[] = [];
  const came = await takeAll(stream, plan, () => asks.push(asked.length));
  t.deepEqual(
    came,
    plan.frames.map(({ index }) => index),
  );
  t.is(asked[0]!.from, plan.frames[10]!.offset);
  t.is(asked.at(-1)!.to, bytes.length);
  t.true(asks[0]! > 0, 'when the first frame was taken');
  t.true(asks[8]! < asks.at(-1)!, 'and not all of it');
});

test('an error of any run, and a bundle that is gone, end it and give the connection back', async (t) => {
  for (const fault of ['error', 'gone', 'short'] as const) {
    const { plan, bytes } = await makePlan();
    let released = 0;
    let aborted = 0;
    let asks = 0;
    const stream = new FrameStream(
      plan,
      async (from, to, signal) => {
        signal.addEventListener('abort', () => aborted++);
        if (++asks < 3) return reader(bytes.subarray(from, to));
        if (fault === 'gone') return 'gone';
        if (fault === 'short') return reader(bytes.subarray(from, to - 1));
        throw new FirstlightError('unreachable', 'broken');
      },
      () => released++,
    );
    const taking = takeAll(stream, plan, () => undefined);
    if (fault === 'gone') await taking;
    else await t.throwsAsync(taking, { instanceOf: FirstlightError });
    t.is(released, 1, fault);
    t.is(aborted, asks, fault);
  }
});

test('where a connection falls silent, its frames come over another, and those behind it follow', async (t) => {
  for (const bytesBefore of [undefined, 0, 200_000]) {
    const { plan, bytes } = await makePlan();
    const asked: { from: number; to: number; signal: AbortSignal }[] = [];
    const stream = impatient(plan, async (from, to, signal, index) => {
      asked.push({ from, to, signal });
      if (index !== 1) return reader(bytes.subarray(from, to));
      // Nothing, a head, or some bytes: and then silence.
      if (bytesBefore === undefined) return new Promise(() => undefined);
      return paused(bytes.subarray(from, to), bytesBefore);
    });
    const came = await takeAll(stream, plan, () => undefined);
    t.deepEqual(
      came,
      plan.frames.map(({ index }) => index),
    );
    t.deepEqual(
      asked.map(({ signal }) => signal.aborted),
      asked.map((_, i) => i === 1),
    );
    const again = asked.filter(
      ({ from, to }, i) => i !== 1 && from >= asked[1]!.from && to <= asked[1]!.to,
    );
    t.is(again.length, 1);
    t.is(again[0]!.to, asked[1]!.to);
  }
});

test('one that was only slow is waited for where the other does not come', async (t) => {
  const { plan, bytes } = await makePlan();
  const signals: AbortSignal[] = [];
  let askedAgain = false;
  const stream = impatient(plan, async (from, to, signal, index) => {
    signals.push(signal);
    if (index === 0) return paused(bytes.subarray(from, to), 1000, 300);
    if (from > plan.frames[0]!.offset) return reader(bytes.subarray(from, to));
    askedAgain = true;
    throw new FirstlightError('unreachable', 'broken');
  });
  const came = await takeAll(stream, plan, () => undefined);
  t.deepEqual(
    came,
    plan.frames.map(({ index }) => index),
  );
  t.true(askedAgain);
  t.false(signals[0]!.aborted);
});

test('connections that each fall silent for some time hold it up, and bring it to its end', async (t) => {
  const { plan, bytes } = await makePlan();
  let asks = 0;
  const stream = impatient(plan, async (from, to) => {
    asks++;
    return paused(bytes.subarray(from, to), 1000, 150);
  });
  const late = Promise.withResolvers<'late'>();
  const timer = setTimeout(() => late.resolve('late'), 60_000);
  const came = await Promise.race([takeAll(stream, plan, () => undefined), late.promise]);
  clearTimeout(timer);
  stream.destroy();
  t.deepEqual(
    came,
    plan.frames.map(({ index }) => index),
    `asked ${asks} times`,
  );
});
