import { setImmediate } from 'node:timers/promises';
import test from 'ava';
import { Gate } from './gate.ts';

function step(): { promise: Promise<void>; end: () => void } {
  let end = () => {};
  const promise = new Promise<void>((resolve) => {
    end = resolve;
  });
  return { promise, end };
}

test('users share the gate, a remover has it alone', async (t) => {
  const gate = new Gate();
  const log: string[] = [];
  const [a, b, r] = [step(), step(), step()];
  const first = gate.use(async () => {
    log.push('a in');
    await a.promise;
  });
  const second = gate.use(async () => {
    log.push('b in');
    await b.promise;
  });
  const remover = gate.remove(async () => {
    log.push('r in');
    await r.promise;
    log.push('r out');
  });
  await setImmediate();
  t.deepEqual(log, ['a in', 'b in']);
  a.end();
  await first;
  await setImmediate();
  t.deepEqual(log, ['a in', 'b in'], 'the remover waits for the second user too');
  b.end();
  await second;
  await setImmediate();
  t.deepEqual(log, ['a in', 'b in', 'r in']);
  const third = gate.use(async () => {
    log.push('c in');
  });
  await setImmediate();
  t.false(log.includes('c in'), 'a user waits while the remover is at work');
  r.end();
  await Promise.all([remover, third]);
  t.deepEqual(log.slice(3), ['r out', 'c in']);
});

test('an error leaves the gate open', async (t) => {
  const gate = new Gate();
  await t.throwsAsync(
    gate.use(() => Promise.reject(new Error('user'))),
    { message: 'user' },
  );
  await t.throwsAsync(
    gate.remove(() => Promise.reject(new Error('remover'))),
    {
      message: 'remover',
    },
  );
  t.is(await gate.use(async () => 1), 1);
  t.is(await gate.remove(async () => 2), 2);
});
