import { Readable } from 'node:stream';
import test from 'ava';
import { noise } from '../../test/receive/fixture.ts';
import { FirstlightError } from '../errors/errors.ts';
import { BodyReader } from './body-reader.ts';
import type { PieceHead } from './delta-answers.ts';
import { type AskPiece, StripedBody, type StripedOptions } from './striped.ts';

/** What a server would answer for a range of `data`, in small chunks, some time later. */
function answer(data: Buffer, from: number, to: number): PieceHead {
  if (from >= data.length) return { statusCode: 416, headers: {}, body: Readable.from([]) };
  const end = Math.min(to, data.length);
  const chunks: Buffer[] = [];
  for (let at = from; at < end; at += 5000)
    chunks.push(data.subarray(at, Math.min(end, at + 5000)));
  return {
    statusCode: 206,
    headers: { 'content-range': `bytes ${from}-${end - 1}/${data.length}` },
    body: Readable.from(chunks),
  };
}

/** Delays that a seed decides, so that answers overtake each other. */
function later(seed: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, (seed * 7919) % 7));
}

interface Asked {
  connection: number | undefined;
  from: number;
  to: number;
}

function stripe(data: Buffer, connections: number, more: Partial<StripedOptions> = {}) {
  const asked: Asked[] = [];
  const ask: AskPiece = async (connection, from, to, signal) => {
    asked.push({ connection, from, to });
    await later(asked.length);
    signal.throwIfAborted();
    return answer(data, from, to);
  };
  const options = { connections, ask, check: () => undefined, named: () => undefined, ...more };
  const body = new StripedBody(0, undefined, options);
  return { body, asked, reader: new BodyReader(body, (error) => error as Error) };
}

for (const bytes of [1, 13 << 10, (13 << 10) + 1, 300_000, 4 << 20, (4 << 20) + 1, 9_000_000]) {
  for (const connections of [2, 8]) {
    test(`${bytes} bytes over ${connections} connections are the same bytes`, async (t) => {
      const data = noise('striped', bytes);
      const { body, reader, asked } = stripe(data, connections);
      t.is((await body.head).statusCode, 206);
      t.true((await reader.take(bytes)).equals(data));
      await reader.end();
      t.is(new Set(asked.map(({ connection }) => connection)).size, connections);
      // What exists is asked for once.
      const sum = asked.reduce(
        (all, { from, to }) => all + Math.max(0, Math.min(to, bytes) - from),
        0,
      );
      t.is(sum, bytes);
    });
  }
}

test('the first pieces come over all connections, before anything else is asked for', (t) => {
  const { body, asked } = stripe(noise('x', 10_000_000), 8);
  t.deepEqual(
    asked.map(({ connection }) => connection),
    [0, 1, 2, 3, 4, 5, 6, 7],
  );
  t.true(asked.every(({ from, to }) => to - from === 13 << 10));
  body.destroy();
});

/** A body whose answers bring bytes when told; eight connections. */
async function fed(now: () => number) {
  const data = noise('grows', 10_000_000);
  const asked: Asked[] = [];
  const feeds: Readable[] = [];
  const body = new StripedBody(0, undefined, {
    connections: 8,
    check: () => undefined,
    named: () => undefined,
    now,
    ask: async (connection, from, to) => {
      asked.push({ connection, from, to });
      const feed = new Readable({ read: () => undefined });
      feeds.push(feed);
      return { ...answer(data, from, to), body: feed };
    },
  });
  body.on('data', () => undefined);
  await body.head;
  const sum = () => asked.reduce((bytes, { from, to }) => bytes + to - from, 0);
  const feed = async (connection: number, bytes: number) => {
    feeds[connection]!.push(data.subarray(0, bytes));
    await new Promise((resolve) => setImmediate(resolve));
  };
  return { body, asked, sum, feed };
}

test('on a slow line what is asked for grows with what has come', async (t) => {
  let time = 0;
  const { body, asked, sum, feed } = await fed(() => time);
  t.is(asked.length, 8);
  const first = sum();
  for (let received = 1500; received < 96_000; received += 1500) {
    // 100 bytes in a millisecond, all connections alike.
    await feed((received / 1500) % 8, 1500);
    time += 15;
    // What slow start doubles, and never much more than that: a piece.
    t.true(sum() >= first + 2 * received, `${sum()} asked for, ${received} received`);
    t.true(sum() <= first + Math.max(3 * received, 50_000) + (104 << 10), `${sum()} asked for`);
  }
  body.destroy();
});

test('on a fast line much is asked for as soon as the first pieces come', async (t) => {
  const { body, asked, sum, feed } = await fed(() => 0);
  for (let connection = 0; connection < 4; connection++) await feed(connection, 12 << 10);
  t.true(sum() > 1_000_000, `${sum()} asked for`);
  // Evenly, in turn: as their windows grow.
  const order = asked.map((piece) => piece.connection);
  t.deepEqual(order.slice(0, 24), [
    ...order.slice(0, 8),
    ...order.slice(0, 8),
    ...order.slice(0, 8),
  ]);
  for (let connection = 0; connection < 8; connection++) {
    t.true(asked.filter((piece) => piece.connection === connection).length <= 4);
  }
  body.destroy();
});

test('it ends where it is told to, which is no less than it has asked for', async (t) => {
  const data = noise('stop', 9_000_000);
  const { body, asked, reader } = stripe(data, 8);
  t.true((await reader.take(100_000)).equals(data.subarray(0, 100_000)));
  const least = body.leastEnd;
  const to = least + 12_345;
  body.stopAt(to);
  t.true((await reader.take(to - 100_000)).equals(data.subarray(100_000, to)));
  await reader.end();
  t.is(Math.max(...asked.map((piece) => piece.to)), to);
  t.true(least >= 100_000 && least <= 5 << 20, `${least}`);
});

test('a connection that it is told to leave is asked for nothing more, not even what broke', async (t) => {
  const data = noise('leave', 6_000_000);
  const asked: Asked[] = [];
  let left = false;
  const { body, reader } = stripe(data, 3, {
    ask: async (connection, from, to) => {
      t.false(left && connection === 0, `${from} to ${to} on the connection that was left`);
      asked.push({ connection, from, to });
      await later(asked.length);
      const again = asked.filter((piece) => piece.to === to).length > 1;
      if (left && !again && asked.length % 3 === 0)
        throw new FirstlightError('unreachable', 'broken');
      return answer(data, from, to);
    },
  });
  const first = 3 * (13 << 10);
  t.true((await reader.take(first)).equals(data.subarray(0, first)));
  body.stopAt(data.length, 0);
  left = true;
  t.true((await reader.take(data.length - first)).equals(data.subarray(first)));
  await reader.end();
  const pieces = new Set(asked.map(({ from }) => from));
  t.true(asked.length > pieces.size, 'some were asked for again');
});

test('until it is told where to stop, it runs no more than a little ahead of whoever reads', async (t) => {
  const data = noise('ahead', 12_000_000);
  const { reader, asked } = stripe(data, 8);
  // A header of six megabytes comes whole.
  t.true((await reader.take(6_000_000)).equals(data.subarray(0, 6_000_000)));
  await later(6);
  const most = Math.max(...asked.map(({ to }) => to));
  t.true(most <= 6_000_000 + (3 << 20), `${most} bytes asked for`);
});

test('a connection that breaks costs its piece only, which another one brings', async (t) => {
  const data = noise('breaks', 2_000_000);
  const asked: Asked[] = [];
  const { body, reader } = stripe(data, 4, {
    ask: async (connection, from, to) => {
      asked.push({ connection, from, to });
      await later(asked.length);
      const whole = answer(data, from, to);
      if (connection !== 2) return whole;
      const part = data.subarray(from, from + 1000);
      return {
        ...whole,
        body: Readable.from(
          (async function* () {
            yield part;
            throw new FirstlightError('unreachable', 'broken');
          })(),
        ),
      };
    },
  });
  t.is((await body.head).statusCode, 206);
  t.true((await reader.take(data.length)).equals(data));
  await reader.end();
  for (const { from } of asked.filter(({ connection }) => connection === 2)) {
    const again = asked.filter((piece) => piece.from === from + 1000);
    t.is(again.length, 1, `the rest of the piece at ${from}`);
    t.not(again[0]!.connection, 2);
  }
});

test('after the stop the rest of a broken piece does not stand behind what follows the body', async (t) => {
  const data = noise('apart', 2_000_000);
  const asked: Asked[] = [];
  const breakOff = Promise.withResolvers<void>();
  const { body, reader } = stripe(data, 4, {
    ask: async (connection, from, to) => {
      asked.push({ connection, from, to });
      const whole = answer(data, from, to);
      if (connection !== 2 || from < 1_000_000) return whole;
      const part = data.subarray(from, from + 1000);
      return {
        ...whole,
        body: Readable.from(
          (async function* () {
            yield part;
            await breakOff.promise;
            throw new FirstlightError('unreachable', 'broken');
          })(),
        ),
      };
    },
  });
  const taken = reader.take(data.length);
  while (!asked.some(({ connection, from }) => connection === 2 && from >= 1_000_000))
    await later(1);
  body.stopAt(data.length, 0);
  breakOff.resolve();
  t.true((await taken).equals(data));
  await reader.end();
  const broken = asked.filter(({ connection, from }) => connection === 2 && from >= 1_000_000);
  for (const { from } of broken) {
    const again = asked.filter((piece) => piece.from === from + 1000);
    t.deepEqual(
      again.map(({ connection }) => connection),
      [undefined],
    );
  }
});

test('connections that cannot be made are done without', async (t) => {
  const data = noise('refused', 1_000_000);
  const { body, reader } = stripe(data, 8, {
    ask: async (connection, from, to) => {
      if (connection !== 0) throw new FirstlightError('unreachable', 'refused');
      await later(3);
      return answer(data, from, to);
    },
  });
  t.is((await body.head).statusCode, 206);
  t.true((await reader.take(data.length)).equals(data));
  await reader.end();
});

test('without the first connection there is no answer, and the reason is told', async (t) => {
  const { body } = stripe(Buffer.alloc(10), 4, {
    ask: async () => {
      throw new FirstlightError('unreachable', 'nobody there');
    },
  });
  await t.throwsAsync(body.head, { message: 'nobody there' });
  t.true(body.destroyed);
});

test('where the connection of the first piece breaks before it answers, one that has answered brings that', async (t) => {
  // Of a small bundle the others have nothing to bring.
  for (const bytes of [2_000_000, 5000]) {
    const data = noise('early', bytes);
    const { body, reader } = stripe(data, 4, {
      ask: async (connection, from, to) => {
        if (connection === 0) throw new FirstlightError('unreachable', 'broken');
        await later(3);
        return answer(data, from, to);
      },
    });
    t.is((await body.head).statusCode, 206);
    t.true((await reader.take(bytes)).equals(data));
    await reader.end();
  }
});

test('what takes too long over one connection is asked for over another', async (t) => {
  const data = noise('late', 300_000);
  const { reader } = stripe(data, 4, {
    ask: async (connection, from, to) => {
      await later(3);
      if (connection === 2) throw new FirstlightError('timeout', 'did not answer in time');
      return answer(data, from, to);
    },
  });
  t.true((await reader.take(data.length)).equals(data));
  await reader.end();
});

test('a piece that never comes ends the whole after a few attempts', async (t) => {
  const data = noise('never', 500_000);
  let attempts = 0;
  const { reader } = stripe(data, 4, {
    ask: async (_, from, to) => {
      if (from !== 13 << 10) return answer(data, from, to);
      attempts++;
      throw new FirstlightError('unreachable', 'lost');
    },
  });
  t.true(
    (await reader.take(13 << 10)).equals(data.subarray(0, 13 << 10)),
    'what came before is given',
  );
  await t.throwsAsync(reader.take(1), { message: 'lost' });
  t.is(attempts, 3);
});

test('an answer that is no part is left to whoever asked; the others are not read', async (t) => {
  for (const statusCode of [200, 404]) {
    let aborted = 0;
    const { body } = stripe(Buffer.alloc(0), 4, {
      ask: async (connection, from, _, signal) => {
        signal.addEventListener('abort', () => aborted++);
        const text = Readable.from([Buffer.from('whole')]);
        if (connection !== 0 || from > 0) await later(5);
        return { statusCode, headers: {}, body: text };
      },
    });
    const head = await body.head;
    t.is(head.statusCode, statusCode);
    const chunks: Buffer[] = [];
    for await (const chunk of head.body) chunks.push(chunk as Buffer);
    t.is(Buffer.concat(chunks).toString(), 'whole');
    t.is(aborted > 0, statusCode === 200);
  }
});

test('another bundle, or another range than was asked for, is an error', async (t) => {
  const data = noise('other', 200_000);
  const other = stripe(data, 4, {
    check: () => {
      throw new FirstlightError('unreachable', 'another bundle');
    },
  });
  await t.throwsAsync(other.reader.take(data.length), { message: 'another bundle' });
  const shifted = stripe(data, 4, {
    ask: async (_, from, to) => answer(data, from === 0 ? 0 : from + 1, to),
  });
  await t.throwsAsync(shifted.reader.take(data.length), { message: /another range/ });
});

test('nothing is broken off at a proper end; everything is where it is given up', async (t) => {
  const data = noise('end', 30_000);
  let aborted = 0;
  const watch = (delay: boolean): AskPiece => {
    return async (_, from, to, signal) => {
      signal.addEventListener('abort', () => aborted++);
      if (delay && from >= data.length) await new Promise((resolve) => setTimeout(resolve, 50));
      return answer(data, from, to);
    };
  };
  const ended = stripe(data, 4, { ask: watch(true) });
  await ended.reader.take(data.length);
  await ended.reader.end();
  t.is(aborted, 0);
  const left = stripe(noise('left', 9_000_000), 4, { ask: watch(false) });
  await left.body.head;
  left.body.destroy();
  t.true(aborted > 0);
});

test('what nobody takes is not asked for without end', async (t) => {
  const data = noise('slow', 12_000_000);
  const { body, asked } = stripe(data, 8);
  await body.head;
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.true(body.readableLength < 6 << 20, `${body.readableLength} bytes lie ready`);
  t.true(asked.length < 60);
  body.destroy();
});
