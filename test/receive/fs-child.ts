// Mounts an image through FsInstance in a process of its own, and does what it reads from stdin:
// "teardown", "detach", "status", "exit". Arguments: root, server, mount point, overlay|off.
// Answers each with a line of JSON.
import { createInterface } from 'node:readline';
import { toFirstlightError } from '../../src/errors/errors.ts';
import { kernelSessions } from '../../src/fuse/kernel-session.ts';
import { makeLogger } from '../../src/log/log.ts';
import { Receiver } from '../../src/receive/receiver.ts';
import { LayerStore } from '../../src/store/layer-store.ts';
import { FsInstance, type RwMode } from '../../src/tree/fs-instance.ts';

const [root, server, mountPoint, rw] = process.argv.slice(2) as [string, string, string, RwMode];
const log = makeLogger('fs-child');
const store = await LayerStore.open(root, { log });
const receiver = await Receiver.open(store, { server, ref: 'app:1', platform: 'linux/amd64', log });
await receiver.complete;
const instance = new FsInstance({
  id: 'snap-1',
  template: receiver.template,
  mountPoint,
  source: 'app:1',
  rw,
  snapshots: store.layout.snapshots,
  makeSession: kernelSessions(),
  waitTimeoutMs: 10_000,
  wanted: (content, first, last) => receiver.wanted(content, first, last),
  traces: {
    directory: store.layout.traces,
    platform: 'linux/amd64',
    receivedBytes: () => receiver.progress().receivedBytes,
  },
  log,
});
await instance.setOptimizerOn('group');

async function answer(work: () => Promise<unknown>): Promise<void> {
  try {
    console.log(JSON.stringify({ ok: (await work()) ?? null }));
  } catch (error) {
    const { kind, line } = toFirstlightError(error);
    console.log(JSON.stringify({ kind, line }));
  }
}

await answer(() => instance.start());
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'status') await answer(async () => instance.status());
  else if (line === 'teardown') {
    // Twice at once: they share one outcome.
    await answer(() => Promise.all([instance.teardown(), instance.teardown()]));
  } else if (line === 'detach') await answer(() => instance.teardown({ detach: true }));
  else if (line === 'exit') break;
}
await receiver.close();
await store.close();
