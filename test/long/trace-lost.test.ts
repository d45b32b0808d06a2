// More opens than the kernel keeps for a reader that is late: a live trace of opens that the kernel makes alone
// has all of them, or says that some were lost.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { canOpenAlone } from '../../src/fuse/opens.ts';
import { loadTrace } from '../../src/trace/files.ts';
import type { Tracer } from '../../src/trace/tracer.ts';
import { Background, must } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

// Elsewhere the session answers every open, and none can be lost.
const testUnseen = canOpenAlone() ? test : test.skip;

testUnseen('opens that come faster than they are taken are counted as lost', async (t) => {
  // More than the kernel keeps for a reader that is late.
  const queued = Number(await readFile('/proc/sys/fs/fanotify/max_queued_events', 'utf8'));
  const count = queued + 2000;
  const stage = await Stage.open(t);
  const tree = join(stage.dir, 'tree');
  const make =
    'import os, sys\nos.mkdir(sys.argv[1])\nfor i in range(int(sys.argv[2])): open(f"{sys.argv[1]}/{i}", "w").write("x")';
  await must('python3', ['-c', make, tree, String(count)]);
  const tar = join(stage.dir, 'many.tar');
  await must('tar', ['-C', tree, '-cf', tar, '.']);
  await stage.serve();
  await stage.addImage(`rootfs:${tar}`, 'many:1');
  const dir = await stage.mount('many:1', ['--rw', 'off', '--wait']);
  // Opens alone: they need nothing of the daemon once the names are known.
  const walk =
    'import os, sys\nfor i in range(int(sys.argv[2])): os.close(os.open(f"{sys.argv[1]}/{i}", 0))';
  await must('python3', ['-c', walk, dir, String(count)]);
  t.is((await stage.mountStatus(dir)).features?.opens, 'unseen');
  const recorded = async (): Promise<Tracer> => {
    const [off] = await stage.json<{ path: string }[]>(['trace', 'off', dir]);
    return loadTrace(off!.path);
  };

  await stage.must(['trace', 'on', dir]);
  await must('python3', ['-c', walk, dir, String(count)]);
  const whole = await recorded();
  t.true(whole.seq.length === count || whole.lost! > 0, `${whole.seq.length} of ${count}`);
  t.log(`${whole.seq.length} of ${count} opens, lost: ${whole.lost ?? 0}`);

  // With nobody to take them; unless the kernel has let go of a name meanwhile and asks for it.
  await stage.must(['trace', 'on', dir]);
  const pid = await stage.daemonPid();
  const stopped = new Background('python3', ['-c', walk, dir, String(count)]);
  stage.onClose(async () => void (await stopped.ended));
  process.kill(pid, 'SIGSTOP');
  const alone = await Promise.race([stopped.ended.then(() => true), sleep(60_000, false)]);
  process.kill(pid, 'SIGCONT');
  await stopped.ended;
  const cut = await recorded();
  if (alone) t.true(cut.seq.length <= queued + 100, `${cut.seq.length} opens`);
  t.true(cut.seq.length === count || cut.lost! > 0, `${cut.seq.length} of ${count}`);
  t.log(`${cut.seq.length} of ${count} opens, lost: ${cut.lost ?? 0}, alone: ${alone}`);
});
