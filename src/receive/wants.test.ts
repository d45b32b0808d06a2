// What becomes of wants at the end of a transfer.
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { Wants } from './wants.ts';

test('after the end of its transfer nothing is looked at for readers', async (t) => {
  let looks = 0;
  const end = new AbortController();
  const owner = {
    plan: () => {
      looks++;
      return undefined;
    },
    stream: () => undefined,
    soonBytes: () => 0,
    fetch: () => undefined,
    fetchRest: () => undefined,
  };
  const wants = new Wants(owner, end.signal);
  wants.add([0, 0, 0]);
  t.is(looks, 1);
  end.abort();
  wants.add([1, 0, 0]);
  // Longer than two of the looks that it would take now and then.
  await sleep(700);
  t.is(looks, 1);
});
