// The table without mounts: what happens to those that are being made. Real ones are in test/e2e.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { quietLog } from '../../test/receive/fixture.ts';
import type { ReceiverOptions } from '../receive/receiver.ts';
import { LayerStore } from '../store/layer-store.ts';
import type { MountRequest } from './control.ts';
import { IdleTimer } from './idle.ts';
import { MountTable } from './mount-table.ts';
import { Notes } from './notes.ts';
import { Transfers } from './transfers.ts';

test('the end of the daemon ends mounts that still wait for their header', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'firstlight-mount-table-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const { log } = quietLog();
  const store = await LayerStore.open(root, { log });
  t.teardown(() => store.close());
  const idle = new IdleTimer(Number.POSITIVE_INFINITY, () => undefined);
  const asked = Promise.withResolvers<void>();
  class Silent extends Transfers {
    override open({ signal }: ReceiverOptions): Promise<never> {
      asked.resolve();
      return new Promise((_, reject) => {
        signal!.addEventListener('abort', () => reject(signal!.reason as Error), { once: true });
      });
    }
  }
  const transfers = new Silent(store, idle, log);
  t.teardown(() => transfers.endAll());
  const notes = new Notes(join(root, 'notes'), store.layout.snapshots, log);
  const mountPoints = join(root, 'rootfs');
  const table = new MountTable({ store, transfers, notes, mountPoints, idle, log });
  const request = { image: 'app:1', platform: 'linux/amd64', rw: 'off' } as MountRequest;
  const gone = new AbortController();
  const mount = table.mount(request, { send: () => undefined, gone: gone.signal });
  const refused = t.throwsAsync(mount, { message: 'the daemon is ending' });
  await asked.promise;
  await table.endAll();
  t.like(await refused, { kind: 'busy' });
  t.deepEqual(await table.status(), []);
});
