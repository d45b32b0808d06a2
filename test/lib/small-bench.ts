// The process of test/long/bench-ends.test.ts: a bench that measures nothing, but has what benches have: a mount, a
// link with two networks, a child, and a program that is in nobody's list and takes no SIGTERM, as the
// shim of a container. Prints "up" when all of it is there.
import { execFileSync, spawn } from 'node:child_process';
import { enclose } from '../../bench/lib/enclosure.ts';
import { Workspace } from '../../bench/lib/workspace.ts';
import { Wan } from '../../bench/wan/wan.ts';

await enclose('small', 'shared');
const space = new Workspace('small');
try {
  execFileSync('mount', ['-t', 'tmpfs', 'small-bench', space.makeDirectory('mounted')]);
  space.start('sleep', ['1000']);
  spawn('bash', ['-c', "trap '' TERM; sleep 1000"], { detached: true, stdio: 'ignore' }).unref();
  const wan = await Wan.start({ rttMs: 10, bitsPerSecond: 1e8 });
  space.defer(() => wan.close());
  console.log('up');
  if (process.argv[2] === 'fails') throw new Error('it fails');
  if (process.argv[2] !== 'ends') await new Promise((resolve) => setTimeout(resolve, 1_000_000));
} finally {
  await space.close();
}
