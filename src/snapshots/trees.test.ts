// Images that are mounted for containers, as far as that goes without a kernel: who waits for whom, and how
// long. Real mounts stand in test/e2e/snapshotter.test.ts.
import test from 'ava';
import { pino } from 'pino';
import type { FirstlightError } from '../errors/errors.ts';
import type { Receiver } from '../receive/receiver.ts';
import { Trees, type TreesOptions } from './trees.ts';

const IMAGE = `sha256:${'1'.repeat(64)}`;

function trees(options: Partial<TreesOptions>): Trees {
  return new Trees({
    directory: '/nonexistent',
    release: async () => undefined,
    close: async () => undefined,
    isUsed: async () => false,
    onWaited: () => undefined,
    log: pino({ level: 'silent' }),
    ...options,
  } as TreesOptions);
}

test('an image that does not come is waited for within a bound, and given back where it comes later', async (t) => {
  const late = Promise.withResolvers<Receiver>();
  const signals: (AbortSignal | undefined)[] = [];
  const released = Promise.withResolvers<Receiver>();
  const all = trees({
    openTimeoutMs: 50,
    open: (_, signal) => {
      signals.push(signal);
      // Deaf to its signal, too.
      return late.promise;
    },
    release: async (receiver) => released.resolve(receiver),
  });
  const error = await t.throwsAsync<FirstlightError>(all.hold(IMAGE));
  t.is(error?.kind, 'timeout');
  t.regex(error!.line, /not in the store.*pull it again/);
  t.true(signals[0]?.aborted);
  const receiver = { digest: IMAGE } as Receiver;
  late.resolve(receiver);
  t.is(await released.promise, receiver);
});

test('what a keeper has is not dropped under a container that begins at the same moment', async (t) => {
  const dropping = Promise.withResolvers<void>();
  const began = Promise.withResolvers<void>();
  const did: string[] = [];
  const all = trees({
    open: async () => {
      did.push('open');
      throw new Error('no server');
    },
  });
  const drop = async () => {
    did.push('drop');
    began.resolve();
    await dropping.promise;
    did.push('dropped');
  };
  // Of the container there is no record yet, but it holds on to the image.
  const adopting = all.adopt([IMAGE], drop);
  await t.throwsAsync(all.hold(IMAGE), { message: 'no server' });
  await adopting;
  t.false(did.includes('drop'));

  did.length = 0;
  const adopted = all.adopt([IMAGE], drop);
  await began.promise;
  const later = all.hold(IMAGE);
  // Time enough to go wrong.
  await new Promise((resolve) => setTimeout(resolve, 20));
  dropping.resolve();
  await Promise.all([adopted, t.throwsAsync(later, { message: 'no server' })]);
  t.deepEqual(did, ['drop', 'dropped', 'open'], 'it waits until the other is gone');
});
