// The snapshotter's daemon is killed at random moments while many calls are under way: afterwards every snapshot
// that a call has confirmed is there with its files, and nothing is half there.
import { randomInt } from 'node:crypto';
import { readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'ava';
import { Client } from '../../src/snapshots/testkit.ts';
import { KIND, type Mount } from '../../src/snapshots/types.ts';
import { type Background, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

const ROUNDS = 12;
const LANES = 12;

async function start(stage: Stage, socket: string): Promise<Background> {
  const daemon = stage.start(['daemon', '--snapshotter', socket]);
  await until('the daemon is ready', () => {
    if (!daemon.running) throw new Error(`the daemon ended: ${daemon.stderr}`);
    return daemon.stderr.includes('is ready');
  });
  return daemon;
}

function directoryOf([mount]: Mount[]): string {
  const upper = mount!.options.find((option) => option.startsWith('upperdir='));
  return upper?.slice('upperdir='.length) ?? mount!.source;
}

/** What calls have confirmed. */
interface Confirmed {
  committed: Set<string>;
  removed: Set<string>;
  /** Removals that were begun: they may have been done without an answer. */
  removing: Set<string>;
}

/** Prepares, commits and removes until the daemon is gone. */
async function work(client: Client, lane: string, confirmed: Confirmed): Promise<void> {
  let parent = '';
  for (let i = 0; ; i++) {
    const [key, name] = [`${lane}-${i}-key`, `${lane}-${i}`];
    try {
      const mounts = await client.prepare(key, parent);
      await writeFile(join(directoryOf(mounts), 'file'), name);
      await client.commit(name, key);
      confirmed.committed.add(name);
      if (i % 3 === 2) {
        confirmed.removing.add(name);
        await client.remove(name);
        confirmed.removed.add(name);
      } else parent = name;
    } catch {
      // It was killed; what was under way may be there or not, and is not counted.
      return;
    }
  }
}

test('kill -9 at any moment leaves what was confirmed, and nothing half there', async (t) => {
  const stage = await Stage.open(t);
  const socket = join(stage.dir, 's.sock');
  const directory = join(stage.root, 'containerd/snapshots');
  const confirmed: Confirmed = { committed: new Set(), removed: new Set(), removing: new Set() };
  for (let round = 0; round < ROUNDS; round++) {
    const daemon = await start(stage, socket);
    const clients = Array.from({ length: LANES }, () => new Client(socket));
    const lanes = clients.map((client, i) => work(client, `r${round}-${i}`, confirmed));
    // By how much has been done, which is another moment each time, and there on a slow machine, too.
    const enough = confirmed.committed.size + randomInt(1, 20 + 10 * round);
    await until('calls are under way', () => confirmed.committed.size >= enough, { everyMs: 1 });
    await daemon.kill('SIGKILL');
    await Promise.all(lanes);
    for (const client of clients) client.close();

    const again = await start(stage, socket);
    const client = new Client(socket);
    const { keys } = await client.list();
    for (const name of confirmed.committed) {
      if (!confirmed.removing.has(name)) t.true(keys.includes(name), `${name} is lost`);
    }
    for (const name of confirmed.removed) t.false(keys.includes(name), `${name} is back`);
    t.is((await readdir(directory)).length, keys.length, 'a directory for each snapshot');
    for (const key of keys) {
      const { kind } = await client.stat(key);
      if (kind === KIND.Committed) {
        const view = await client.view(`view-of-${key}`, key);
        const lower = view[0]!.options.find((option) => option.startsWith('lowerdir='));
        const top = lower?.slice('lowerdir='.length).split(':')[0] ?? view[0]!.source;
        t.deepEqual(await readdir(top), ['file'], key);
        await client.remove(`view-of-${key}`);
      } else await client.remove(key);
    }
    client.close();
    t.is((await again.kill('SIGTERM')).code, 0);
  }
  t.true(confirmed.committed.size > ROUNDS, 'there was something to lose');
});
