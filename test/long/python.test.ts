// Real programs that map tens of megabytes of libraries while these are still arriving.
import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { arriveUntil, behindProxy } from '../lib/arriving.ts';
import { testImage } from '../lib/images.ts';
import { until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

const PROGRAM = `
import numpy, requests, json, sqlite3, ssl
a = numpy.arange(10000, dtype=float).reshape(100, 100)
print(json.dumps([float((a @ a).trace()), requests.__name__, numpy.linalg.matrix_rank(a).item()]))
`;

/**
 * The runtime as a program that works here. crun refuses a machine whose cgroups are half version 1
 * and half version 2, whatever the container asks for; there it does not see the second half.
 */
async function runtimeProgram(stage: Stage, name: string): Promise<string> {
  const hybrid = / \/sys\/fs\/cgroup\/unified .* - cgroup2 /.test(
    await readFile('/proc/self/mountinfo', 'utf8'),
  );
  if (name !== 'crun' || !hybrid) return name;
  const wrapper = join(stage.dir, 'crun');
  const inner = 'umount -l /sys/fs/cgroup/unified; exec crun "$@"';
  await writeFile(wrapper, `#!/bin/sh\nexec unshare -m sh -c '${inner}' crun "$@"\n`);
  await chmod(wrapper, 0o755);
  return wrapper;
}

for (const name of ['runc', 'crun']) {
  test(`python computes with numpy under ${name} while the image arrives`, async (t) => {
    const stage = await Stage.open(t);
    const runtime = await runtimeProgram(stage, name);
    const image = await testImage('python');
    // Of all of it the program needs a third. The rate bounds what is under way at a time, the proxy what comes.
    await stage.serve({ rate: '50mbit' });
    await stage.addImage(`rootfs:${image}/rootfs.tar`, 'python:test');
    const proxy = await behindProxy(stage);
    proxy.holdAfter(4 << 20);
    // A mount of its own keeps the daemon and shows the transfer when the container has ended.
    const dir = await stage.mount('python:test', ['--rw', 'off']);
    const command = ['run', 'python:test', '--runtime', runtime, '--', 'python3', '-c', PROGRAM];
    const program = stage.start(command);
    await arriveUntil(stage, proxy, 'it has ended', () => !program.running, 1 << 20);
    const during = await stage.mountStatus(dir);
    const { code, stdout, stderr } = await program.ended;
    t.is(code, 0, stderr);
    const out = stdout.toString();
    t.deepEqual(JSON.parse(out), [251616502500, 'requests', 2]);
    t.not(during.transfer.state, 'complete', 'it ended before the image was there');
    t.log(`${during.bytesDone} of ${during.bytes} bytes had come`);
    proxy.flow();
    await until(
      'all has arrived',
      async () => (await stage.mountStatus(dir)).transfer.state === 'complete',
      { everyMs: 200 },
    );
    t.is(await stage.must(command), out);
  });
}
