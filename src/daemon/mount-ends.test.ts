// The order in which a mount's remains go; that they go at all is under test with real mounts (test/e2e).
import test from 'ava';
import { pino } from 'pino';
import type { Mount } from './mount.ts';
import { MountEnds, type MountEndsOptions } from './mount-ends.ts';

function makeMount(): Mount {
  const gone = Promise.withResolvers<void>();
  return {
    id: 'box',
    directory: '/mnt',
    note: { id: 'box', directory: '/mnt', temporary: true },
    instance: { teardown: async () => undefined },
    receiver: {},
    state: 'mounted',
    ending: undefined,
    releaseIdle: () => undefined,
    gone: gone.promise,
    setGone: gone.resolve,
  } as unknown as Mount;
}

test('a mount is told as gone, and its name free, when its files are gone; one whose files stay is tried again', async (t) => {
  const said: string[] = [];
  const removal = Promise.withResolvers<void>();
  let fails = false;
  const ends = new MountEnds({
    notes: {
      endContainer: async () => undefined,
      remove: async () => {
        said.push('removing');
        if (fails) throw new Error('EIO');
        await removal.promise;
      },
    },
    transfers: { release: async () => void said.push('released') },
    changes: {},
    log: pino({ level: 'silent' }),
    ended: () => said.push('ended'),
  } as unknown as MountEndsOptions);
  const ending = ends.end(makeMount(), true);
  await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual(said, ['removing']);
  removal.resolve();
  await ending;
  t.deepEqual(said.splice(0), ['removing', 'ended', 'released']);

  const stays = makeMount();
  fails = true;
  await t.throwsAsync(ends.end(stays, true), { message: 'EIO' });
  t.deepEqual(said.splice(0), ['removing']);
  fails = false;
  await ends.end(stays, true);
  t.deepEqual(said, ['removing', 'ended', 'released']);
});
