// The decision whether a layer comes lazily: how an image is found, how long that may take, and what is
// remembered of it.
import test from 'ava';
import { pino } from 'pino';
import type { ChainImage } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';
import { chainIdsOf } from '../image/chain.ts';
import type { Receiver } from '../receive/receiver.ts';
import { Claims, type ClaimsOptions } from './claims.ts';
import { type LayerLabels, layerLabels } from './labels.ts';

const digest = (n: number) => `sha256:${String(n).padStart(64, '0')}`;
const DIFFS = [digest(1), digest(2), digest(3)];
const BLOBS = [digest(11), digest(12), digest(13)];
const CHAIN = chainIdsOf(DIFFS);
const IMAGE = digest(100);

function receiver(image = IMAGE): Receiver {
  const layers = BLOBS.map((blob) => ({ digest: blob, size: 1000 }));
  return {
    digest: image,
    manifest: Buffer.from(JSON.stringify({ layers })),
    config: Buffer.from(JSON.stringify({ rootfs: { diff_ids: DIFFS } })),
    toc: { totalBytes: 7000, rows: 70 },
  } as unknown as Receiver;
}

/** Decisions about an image with three layers, and what was asked for on the way. */
function claims(options: Partial<ClaimsOptions> = {}) {
  const asked: string[] = [];
  const kept: string[] = [];
  const released: string[] = [];
  const made = new Claims({
    open: async (image) => {
      asked.push(`open ${image}`);
      return receiver(image);
    },
    keep: ({ digest: image }) => kept.push(image),
    release: async ({ digest: image }) => {
      released.push(image);
    },
    chains: async (chainId) => {
      asked.push(`chains ${chainId}`);
      const index = CHAIN.indexOf(chainId);
      if (index < 0) return [];
      return [{ digest: IMAGE, name: 'app:1', platform: 'linux/amd64', index, layers: BLOBS }];
    },
    ping: async () => {
      asked.push('ping');
    },
    platform: 'linux/amd64',
    timeoutMs: 5000,
    log: pino({ level: 'silent' }),
    ...options,
  });
  return { claims: made, asked, kept, released };
}

function labels(index: number, more: Partial<LayerLabels> = {}): LayerLabels {
  const none = { ref: null, manifest: null, layerDigest: null, upwards: [], isWhole: false };
  return { chainId: CHAIN[index] ?? digest(999), ...none, ...more };
}

test('a pull that names its manifest is opened once for all its layers', async (t) => {
  const { claims: c, asked, kept } = claims();
  const verdicts = [];
  for (const index of [0, 1, 2]) verdicts.push(await c.claim(labels(index, { manifest: IMAGE })));
  t.deepEqual(asked, [`open ${IMAGE}`]);
  t.deepEqual(kept, [IMAGE]);
  const [low, , top] = verdicts;
  t.deepEqual(low, {
    claim: {
      lazy: { image: IMAGE, ref: null, layerDigest: BLOBS[0]!, tree: null },
      usage: { bytes: 0, inodes: 0 },
      imageBytes: 0,
    },
  });
  t.like(top, {
    claim: {
      lazy: { tree: IMAGE, layerDigest: BLOBS[2] },
      usage: { bytes: 7000, inodes: 70 },
      imageBytes: 3000,
    },
  });
});

test('a layer that is not one of the image is refused, whatever the labels say', async (t) => {
  const { claims: c, kept, released } = claims();
  t.like(await c.claim(labels(9, { manifest: IMAGE })), { fallback: { reason: 'other-layers' } });
  t.deepEqual(kept, []);
  t.deepEqual(released, [IMAGE]);
});

test('an image with the same layers under another manifest is found by its chain', async (t) => {
  const other = digest(200);
  const { claims: c, asked } = claims({
    open: async (image) => {
      asked.push(`open ${image}`);
      if (image === other) throw new FirstlightError('not-found', 'there is no image');
      return receiver(image);
    },
  });
  const verdict = await c.claim(labels(2, { manifest: other, ref: 'reg.example/app:1' }));
  t.like(verdict, { claim: { lazy: { image: IMAGE, tree: IMAGE, ref: 'reg.example/app:1' } } });
  t.deepEqual(asked, [`open ${other}`, `chains ${CHAIN[2]}`, `open ${IMAGE}`]);
  t.like(await c.claim(labels(0, { manifest: other })), { claim: { lazy: { image: IMAGE } } });
  t.is(asked.length, 3, 'the other layers follow from it');
});

test('without any name, lower layers are taken by their chain and the last one opens the image', async (t) => {
  const { claims: c, asked } = claims();
  t.like(await c.claim(labels(0)), { claim: { lazy: { image: IMAGE, ref: 'app:1', tree: null } } });
  t.deepEqual(asked, [`chains ${CHAIN[0]}`]);
  t.like(await c.claim(labels(2)), { claim: { lazy: { tree: IMAGE } } });
  t.deepEqual(asked.slice(1), [`chains ${CHAIN[2]}`, `open ${IMAGE}`]);
  t.like(await c.claim(labels(9)), { fallback: { reason: 'unknown-image' } });
});

test('of several images with the layer, the one that the pull names is meant', async (t) => {
  const image = (n: number, name: string, layers: string[], platform = 'linux/amd64') =>
    ({ digest: digest(n), name, index: 0, layers, platform }) satisfies ChainImage;
  const chains = async () => [
    image(1, 'reg.example/arm:1', BLOBS, 'linux/arm64'),
    image(2, 'reg.example/other:1', [BLOBS[0]!, digest(55)]),
    image(3, 'reg.example/twin:1', BLOBS),
    image(4, 'reg.example/app:1', BLOBS),
  ];
  const { claims: c } = claims({ chains });
  const named = { ref: 'reg.example/app:1', upwards: BLOBS, isWhole: true };
  t.like(await c.claim(labels(0, named)), { claim: { lazy: { image: digest(4) } } });
  const renamed = { ref: 'reg.example/elsewhere:1', upwards: BLOBS, isWhole: true };
  t.like(await c.claim(labels(0, renamed)), { claim: { lazy: { image: digest(3) } } });
});

test('an image that only begins with the layers of the pull is another one', async (t) => {
  const {
    claims: c,
    asked,
    kept,
  } = claims({
    open: async () => {
      throw new FirstlightError('not-found', 'there is no image');
    },
  });
  const base = { ref: 'reg.example/base:1', manifest: digest(300), isWhole: true };
  for (const upwards of [BLOBS.slice(0, 1), [BLOBS[0]!, digest(55)], [...BLOBS, digest(14)]]) {
    const verdict = await c.claim(labels(0, { ...base, upwards, manifest: digest(asked.length) }));
    t.like(verdict, { fallback: { reason: 'unknown-image' } }, `${upwards}`);
  }
  // A list that may have been cut off agrees with many images.
  const cut = { ...base, manifest: digest(301), upwards: BLOBS, isWhole: false };
  t.like(await c.claim(labels(0, cut)), { fallback: { reason: 'unknown-image' } });
  t.deepEqual(kept, []);
});

test('what is remembered of a name does not stand for another image with that name and base', async (t) => {
  const { claims: c } = claims();
  const named = { ref: 'reg.example/app:1', isWhole: true };
  t.like(await c.claim(labels(0, { ...named, upwards: BLOBS })), {
    claim: { lazy: { image: IMAGE, ref: 'reg.example/app:1' } },
  });
  const moved = { ...named, upwards: [BLOBS[0]!, digest(55), BLOBS[2]!] };
  t.like(await c.claim(labels(0, moved)), { fallback: { reason: 'other-layers' } });
});

test("a layer that is known by its chain alone goes by the server's name, not by the pull's", async (t) => {
  const { claims: c } = claims();
  const verdict = await c.claim(labels(0, { ref: 'reg.example/base:1' }));
  t.like(verdict, { claim: { lazy: { image: IMAGE, ref: 'app:1' } } });
});

test('a list of layers is known to be whole while one more would have fitted into its label', (t) => {
  const list = (n: number) => Array.from({ length: n }, (_, i) => digest(i)).join(',');
  const read = (n: number) =>
    layerLabels({
      'containerd.io/snapshot.ref': CHAIN[0]!,
      'containerd.io/snapshot/cri.image-layers': list(n),
    });
  t.like(read(3), { isWhole: true });
  t.is(read(3)?.upwards.length, 3);
  // containerd leaves out what makes name and value together longer than 4096 bytes.
  t.like(read(56), { isWhole: false });
  t.like(read(0), { isWhole: false, upwards: [] });
});

/** Never comes, and is deaf to its signal, too. */
const never = () => new Promise<never>(() => undefined);

test('an answer that takes too long holds one image up for the bound, once, and no other', async (t) => {
  const { claims: c, asked } = claims({
    timeoutMs: 300,
    open: (image) => {
      asked.push(image);
      return image === IMAGE ? never() : Promise.resolve(receiver(image));
    },
  });
  const startedAt = performance.now();
  // Timers fire in the order of their ends, however late.
  let isLate = false;
  const late = setTimeout(() => {
    isLate = true;
  }, 3000);
  const first = await c.claim(labels(0, { manifest: IMAGE }));
  clearTimeout(late);
  const ms = performance.now() - startedAt;
  t.like(first, { fallback: { reason: 'timeout' } });
  t.true(ms >= 290 && !isLate, `${ms} ms`);
  t.like(await c.claim(labels(1, { manifest: IMAGE })), { fallback: { reason: 'timeout' } });
  t.deepEqual(asked, [IMAGE, 'ping'], 'the next layer does not wait for it again');
  t.true('claim' in (await c.claim(labels(0, { manifest: digest(7) }))));
});

test('a server that is deaf to everything is left alone', async (t) => {
  let asked = 0;
  const { claims: c } = claims({
    timeoutMs: 300,
    open: () => {
      asked++;
      return never();
    },
    ping: async () => {
      throw new FirstlightError('timeout', 'no answer');
    },
  });
  t.like(await c.claim(labels(0, { manifest: IMAGE })), { fallback: { reason: 'timeout' } });
  t.like(await c.claim(labels(0, { manifest: digest(7) })), { fallback: { reason: 'timeout' } });
  t.is(asked, 1);
});

test('an error of one image is not taken for a server that is gone; a refused connection is', async (t) => {
  for (const gone of [false, true]) {
    let asked = 0;
    const { claims: c } = claims({
      open: async () => {
        asked++;
        const cause = gone ? { cause: new Error('ECONNREFUSED') } : {};
        throw new FirstlightError('unreachable', 'HTTP status 500, or nobody', cause);
      },
    });
    for (const image of [IMAGE, digest(7)]) {
      const verdict = await c.claim(labels(0, { manifest: image }));
      t.like(verdict, { fallback: { reason: 'unreachable' } });
    }
    t.is(asked, gone ? 1 : 2);
  }
});

test('an image that opens too late is given back', async (t) => {
  const late = Promise.withResolvers<Receiver>();
  const { claims: c, kept, released } = claims({ timeoutMs: 50, open: () => late.promise });
  t.like(await c.claim(labels(2, { manifest: IMAGE })), { fallback: { reason: 'timeout' } });
  late.resolve(receiver());
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.deepEqual([kept, released], [[], [IMAGE]]);
});

test('what else is wrong is told as it is', async (t) => {
  const fails = (error: FirstlightError) =>
    claims({
      open: async () => {
        throw error;
      },
    }).claims.claim(labels(0, { manifest: IMAGE }));
  t.like(await fails(new FirstlightError('unreachable', 'nobody there')), {
    fallback: { reason: 'unreachable', text: 'nobody there' },
  });
  t.like(await fails(new FirstlightError('no-space', 'the disk is full', { hint: 'make room' })), {
    fallback: { reason: 'failed', text: 'the disk is full; make room' },
  });
  const none = claims({ chains: undefined });
  t.like(await none.claims.claim(labels(0)), { fallback: { reason: 'no-server' } });
});

test('layers that ask at the same time share one opening', async (t) => {
  const { claims: c, asked } = claims();
  const verdicts = await Promise.all(
    [0, 1, 2].map((index) => c.claim(labels(index, { manifest: IMAGE }))),
  );
  t.true(verdicts.every((verdict) => 'claim' in verdict));
  t.deepEqual(asked, [`open ${IMAGE}`]);
});
