// Connections that die without a word, or break, while others live: what they owed comes over another. PATIENT has no
// bound that could end one of these waits within a test.
import test from 'ava';
import {
  type FaultyServer,
  makeImage,
  noise,
  type SeenRequest,
  someFiles,
} from '../../test/receive/fixture.ts';
import { assertWhole, makeStage } from '../../test/receive/stage.ts';
import { Receiver, useConnections } from './receiver.ts';

const PATIENT = { connectMs: 600_000, deltaMs: 600_000, headMs: 600_000, idleMs: 600_000 };
const timeouts = { ...PATIENT, silentMs: 500 };
const IMAGE = makeImage('early', {
  ...someFiles('early', [5, 300_000, 70_000, 250_000]),
  zz: noise('zz early', 9_000_000),
});
const ONE_FILE = makeImage('late', { zz: noise('zz late', 9_000_000) });

/** A stage whose image comes over several connections. */
async function manyConnections(t: Parameters<typeof makeStage>[0], count: number, image = IMAGE) {
  const stage = await makeStage(t, image);
  stage.server.deltaRanges = true;
  useConnections(stage.store, count);
  return stage;
}

/** The connection whose request has been seen as the `index`th of all, once there is one. */
function nth(requests: SeenRequest[], index: number, { connection }: SeenRequest): boolean {
  const own = requests[index]?.connection;
  return own === undefined ? requests.length === index : own === connection;
}

for (const [which, index] of [
  ['the first', 0],
  ['another', 3],
] as const) {
  for (const bytes of [0, 1000]) {
    test(`while the first pieces come, ${which} connection may fall silent after ${bytes} bytes`, async (t) => {
      t.timeout(60_000);
      const { store, server, root, options } = await manyConnections(t, 8);
      let silent = 0;
      server.fault = (seen) => {
        if (!nth(server.requests, index, seen)) return { rate: 4_000_000 };
        silent++;
        return { stallAfter: bytes };
      };
      const receiver = await Receiver.open(store, options({ timeouts }));
      await receiver.complete;
      await assertWhole(t, root, IMAGE);
      t.true(silent > 0);
      t.is(receiver.progress().retries, 0);
      await receiver.close();
    });
  }
}

test('while the first pieces come, connections that break do not hang on one that has fallen silent', async (t) => {
  t.timeout(60_000);
  const { store, server, root, options } = await manyConnections(t, 4);
  let broken = 0;
  server.fault = (seen) => {
    const isPieces = seen.path === '/v1/delta' || (seen.range?.from ?? 0) < 3_000_000;
    // That of the first piece, which has brought it.
    if (nth(server.requests, 0, seen) && server.requests.length > 0) return { stallAfter: 1000 };
    if (isPieces && server.requests.length % 5 === 4 && broken++ < 4) return { cutAfter: 1000 };
    return { rate: 4_000_000 };
  };
  const receiver = await Receiver.open(store, options({ timeouts }));
  await receiver.complete;
  await assertWhole(t, root, IMAGE);
  t.true(broken > 0);
  t.is(receiver.progress().retries, 0);
  await receiver.close();
});

test('a server that is silent on all connections for a while is waited for', async (t) => {
  t.timeout(60_000);
  const { store, server, root, options } = await manyConnections(t, 4);
  server.fault = ({ range }) =>
    (range?.from ?? 0) < 1_000_000 ? { pause: { afterBytes: 1, ms: 1200 } } : {};
  const receiver = await Receiver.open(store, options({ timeouts: { ...PATIENT, silentMs: 300 } }));
  await receiver.complete;
  await assertWhole(t, root, IMAGE);
  t.is(receiver.progress().retries, 0);
  await receiver.close();
});

/** A stage whose last part a reader wants, while the stream would bring it a long time later. */
async function wantedLate(
  t: Parameters<typeof makeStage>[0],
  faultOf: (readersRequest: number) => ReturnType<FaultyServer['fault']>,
) {
  const stage = await manyConnections(t, 8, ONE_FILE);
  const { server, store, templates, options } = stage;
  const { bytes } = [...server.bundles.values()][0]!;
  let asked = 0;
  server.fault = ({ range }) => {
    if (range?.to === bytes.length) return faultOf(asked++);
    return (range?.from ?? 0) > 1_000_000 ? { rate: 20_000 } : {};
  };
  const receiver = await Receiver.open(store, options({ timeouts }));
  const { toc } = receiver;
  const part = toc.partCount(0) - 1;
  receiver.wanted(0, part, part);
  return {
    receiver,
    asked: () => asked,
    came: () => templates[0]!.arrivedParts.has(part),
    ...stage,
  };
}

for (const stallAfter of [0, 1000]) {
  test(`what a reader waits for comes over another connection where its own falls silent after ${stallAfter} bytes`, async (t) => {
    t.timeout(60_000);
    const stage = await wantedLate(t, (request) => (request < 2 ? { stallAfter } : {}));
    await stage.templates[0]!.until(stage.came, 40_000);
    t.is(stage.asked(), 3);
    t.is(stage.receiver.progress().retries, 0);
    await stage.receiver.close();
  });
}

test('what a reader waits for comes over the slow connection where another cannot bring it', async (t) => {
  t.timeout(60_000);
  const stage = await wantedLate(t, (request) =>
    request === 0 ? { pause: { afterBytes: 1000, ms: 1500 } } : { status: 500 },
  );
  await stage.templates[0]!.until(stage.came, 40_000);
  t.true(stage.asked() > 1);
  t.is(stage.receiver.progress().retries, 0);
  await stage.receiver.close();
});
