// The tools of the end-to-end tests, so that a test that passes means something.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { FaultProxy } from '../lib/fault-proxy.ts';
import { listTree, treeDifference } from '../lib/images.ts';
import { mountsBelow, processesOf, STAGE_MARK } from '../lib/leaks.ts';
import { Background, must, run, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

/** Two directories with the same file, and a way to change the second. */
async function twins(t: { teardown(end: () => Promise<void>): void }): Promise<[string, string]> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-twins-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  for (const side of ['a', 'b']) {
    await mkdir(join(dir, side));
    await writeFile(join(dir, side, 'file'), 'content');
    await must('setfattr', ['-n', 'user.note', '-v', 'same', join(dir, side, 'file')]);
    for (const path of [join(dir, side, 'file'), join(dir, side)]) {
      await must('touch', ['-d', '2020-01-01 00:00:00.123456789', path]);
    }
  }
  return [join(dir, 'a'), join(dir, 'b')];
}

test.serial('equal trees have equal lists', async (t) => {
  const [a, b] = await twins(t);
  t.deepEqual(treeDifference(await listTree(a), await listTree(b)), []);
  t.is((await listTree(a)).trim().split('\n').length, 2);
});

const CHANGES: [string, string[]][] = [
  [
    'content',
    ['sh', '-c', 'printf kontent > file && touch -d "2020-01-01 00:00:00.123456789" file'],
  ],
  ['mode', ['chmod', '4644', 'file']],
  ['owner', ['chown', '1', 'file']],
  ['nanoseconds', ['touch', '-d', '2020-01-01 00:00:00.123456788', 'file']],
  ['xattr', ['setfattr', '-n', 'user.note', '-v', 'other', 'file']],
  ['name', ['mv', 'file', 'other']],
  ['hard link', ['ln', 'file', '../b-link']],
  ['type', ['sh', '-c', 'rm file && mkfifo file']],
];
for (const [what, command] of CHANGES) {
  test.serial(`a tree with another ${what} has another list`, async (t) => {
    const [a, b] = await twins(t);
    await must(command[0]!, command.slice(1), { cwd: b });
    t.not(treeDifference(await listTree(a), await listTree(b)).length, 0);
  });
}

test.serial('a stage that leaves a mount or a process is found out', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-leak-'));
  const sleeper = new Background('sleep', ['3600'], { env: { ...process.env, [STAGE_MARK]: dir } });
  await must('mount', ['-t', 'tmpfs', 'leak', dir]);
  try {
    t.like(await mountsBelow(dir), [{ mountPoint: dir, type: 'tmpfs', source: 'leak' }]);
    t.deepEqual(
      (await processesOf(dir)).map((found) => found.pid),
      [sleeper.pid],
    );
  } finally {
    await sleeper.kill();
    await must('umount', [dir]);
    await rm(dir, { recursive: true });
  }
  t.deepEqual(await mountsBelow(dir), []);
  t.deepEqual(await processesOf(dir), []);
});

test.serial('closing a stage names a process that does not end on SIGTERM', async (t) => {
  const attempt = { ...t, teardown: () => {}, passed: true } as unknown as typeof t;
  const stage = await Stage.open(attempt);
  const script = 'trap "" TERM; echo up; while :; do sleep 0.2; done';
  const stubborn = new Background('bash', ['-c', script], { env: stage.env });
  await until('it takes no SIGTERM', () => stubborn.stdout.includes('up'));
  await t.throwsAsync(stage.close(500), { message: /did not end on SIGTERM/ });
  t.is((await stubborn.ended).signal, 'SIGKILL');
  await rm(stage.dir, { recursive: true });
});

test.serial('the fault proxy passes, cuts, stalls and comes back', async (t) => {
  const body = Buffer.alloc(300_000, 7);
  const server = createServer((_, response) => response.end(body)).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const proxy = await FaultProxy.start(
    `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
  );
  t.teardown(async () => {
    await proxy.close();
    server.closeAllConnections();
    server.close();
  });
  const curl = (...args: string[]) => run('curl', ['-s', '-o', '-', ...args, proxy.url]);

  t.is((await curl()).stdout.length, body.length);
  proxy.cutAfter(100_000);
  const cut = await curl();
  t.not(cut.code, 0);
  t.true(cut.stdout.length < 100_000);
  proxy.stall();
  t.is((await curl('-m', '0.5')).code, 28);
  proxy.flow();
  await proxy.down();
  t.is((await curl()).code, 7);
  await proxy.up();
  t.is((await curl()).stdout.length, body.length);
});
