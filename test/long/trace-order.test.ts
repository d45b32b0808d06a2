// The whole way of a trace: recorded on one worker, reported, and the order of what the next worker
// gets, of the same image and of its next version.
import { join } from 'node:path';
import test from 'ava';
import { orderNow } from '../../src/serve/testkit-traces.ts';
import { arriveUntil, behindProxy, mountHeld } from '../lib/arriving.ts';
import { Background, must } from '../lib/proc.ts';
import { smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

interface Listed {
  traces: { id: string; group: string; image: string; digest: string; files: number }[];
  broken: unknown[];
}

interface Simulated {
  measured: boolean;
  orders: Record<string, { doneMs: number; blockedMs: number }>;
}

test('what one worker read comes first to the next', async (t) => {
  const stage = await Stage.open(t);
  // The rate bounds what is under way at a time; how much comes is what the proxy lets through.
  const { url } = await stage.serve({ rate: '40mbit' });
  const image = await smallImage(stage.dir);
  await stage.addImage(`rootfs:${image.tar}`, 'app:1');
  const last = image.small.at(-1)!;
  const tree = await orderNow(url, 'app:1');
  t.not(tree.paths[0], last);

  // The run reads what has not arrived, which is when ranges are seen.
  const proxy = await behindProxy(stage);
  const dir = await mountHeld(stage, proxy, 'app:1', ['--trace', 'shop', '--rw', 'off']);
  const middle = 7;
  const file = `if=${join(dir, image.large)}`;
  for (const [command, args] of [
    ['cat', [join(dir, last)]],
    ['dd', [file, 'of=/dev/null', 'bs=1M', `skip=${middle}`, 'count=1']],
  ] as const) {
    const program = new Background(command, [...args]);
    await arriveUntil(stage, proxy, `${command} has ended`, () => !program.running);
    t.is((await program.ended).code, 0, program.stderr);
  }
  t.not((await stage.mountStatus(dir)).transfer.state, 'complete', 'there is an order to see');
  proxy.flow();
  await stage.must(['umount', dir]);
  const { traces, broken } = await stage.json<Listed>(['trace', 'ls']);
  t.deepEqual(broken, []);
  t.like(traces, { length: 1, 0: { group: 'shop', image: 'app:1', files: 2 } });
  // On a line on which what the run itself took, which this machine may have made long, is little.
  const predicted = await stage.json<Simulated>(['optimize', 'simulate', '--bandwidth', '1mbit']);
  t.true(predicted.measured);
  t.true(predicted.orders.recorded!.doneMs < predicted.orders.tree!.doneMs);

  await stage.must(['trace', 'report', '--wait']);
  const traced = await orderNow(url, 'app:1');
  t.is(traced.paths[0], last);
  t.is(traced.paths[1], `${image.large}#${middle}`, 'not the whole of it');
  t.deepEqual([...traced.paths].sort(), [...tree.paths].sort());

  const other = join(stage.dir, 'other');
  const env = { FIRSTLIGHT_ROOT: other };
  await stage.must(['mount', 'app:1', await stage.mountPoint('second'), '--rw', 'off'], { env });
  const kept = join(stage.dir, 'small-root');
  await must('cmp', [join(stage.dir, 'second', last), join(kept, last)]);
  await stage.must(['umount', join(stage.dir, 'second')], { env });
  await stage.must(['daemon', '--stop'], { env });

  // The next version: one more file.
  const next = join(stage.dir, 'next.tar');
  await must('sh', ['-c', 'echo new > "$0/aaa" && tar -C "$0" -cf "$1" .', kept, next]);
  await stage.addImage(`rootfs:${next}`, 'app:2');
  const second = await orderNow(url, 'app:2');
  t.is(second.paths[0], last);
  t.is(second.paths[1], `${image.large}#${middle}`);
});
