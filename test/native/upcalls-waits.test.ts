// Requests of a writable session that wait: for contents, for the tree, for each other; and what ends
// them.
import { readFile } from 'node:fs/promises';
import test from 'ava';
import { sleep, until } from './fixture.ts';
import { Snake } from './snake.ts';
import { World } from './writable-world.ts';

const [ENOENT, EINTR, EIO, ENOSPC, ECONNABORTED, ENOTCONN] = [2, 4, 5, 28, 103, 107];

test('a request waits for a content, and is sent again', async (t) => {
  const world = await World.make(t);
  const snake = await Snake.start(world.fixture);
  snake.tell(`keep('fd', os.open('${world.root}/small', os.O_RDWR))`);
  await world.fixture.untilWaiting(1);
  t.true(snake.silent);
  await world.fixture.arrive('small');
  t.is(await snake.answer(), 'fd');
  t.is(await snake.ask("os.pread(kept['fd'], 100, 0)"), 'small content');
  t.is((await world.ops('small')).filter((op) => op === 'Open').length, 2);
  const wanted = (await world.fixture.events()).filter(({ event }) => event === 'wanted');
  t.is(wanted.length, 1);
});

test('an open that waits for a content in native becomes the tree’s when its node diverges', async (t) => {
  const world = await World.make(t);
  const snake = await Snake.start(world.fixture);
  snake.tell(`keep('fd', os.open('${world.root}/small', os.O_RDONLY))`);
  await world.fixture.untilWaiting(1);
  await world.toy('thaw', await world.node('small'));
  t.deepEqual(await world.ops('small'), []);
  await world.fixture.arrive('small');
  t.is(await snake.answer(), 'fd');
  t.deepEqual(await world.ops('small'), ['Open']);
  t.is(await world.handles('small'), 1);
  t.is(await snake.ask("os.pread(kept['fd'], 100, 0)"), 'small content');
});

test('waits of the tree’s requests end as all waits do', async (t) => {
  const brief = await World.make(t, { waitTimeoutMs: 400 });
  const first = await Snake.start(brief.fixture);
  t.deepEqual(await first.ask(`os.open('${brief.root}/small', os.O_RDWR)`), { errno: EIO });
  const world = await World.make(t, {});
  const snake = await Snake.start(world.fixture);
  snake.tell(`os.open('${world.root}/other', os.O_RDWR)`);
  await world.fixture.untilWaiting(1);
  const content = world.fixture.content('other');
  await world.fixture.send({ do: 'markFailed', indexes: [content], errno: ENOSPC });
  t.deepEqual(await snake.answer(), { errno: ENOSPC });
  t.deepEqual(await snake.ask(`os.open('${world.root}/other', os.O_RDWR)`), { errno: ENOSPC });
});

test('kill -9 ends who waits for a content that the tree wants', async (t) => {
  const world = await World.make(t);
  const snake = await Snake.start(world.fixture);
  snake.tell(`os.open('${world.root}/small', os.O_RDWR)`);
  await world.fixture.untilWaiting(1);
  process.kill(snake.pid, 'SIGKILL');
  t.is((await snake.program.end).signal, 'SIGKILL');
  await world.fixture.untilWaiting(0);
  t.is((await world.fixture.stats()).interrupted, 1);
});

test('kill -9 ends who waits for the tree; what it answers later is dropped', async (t) => {
  const world = await World.make(t, { ready: true });
  const [one, two] = [await Snake.start(world.fixture), await Snake.start(world.fixture)];
  // Whoever looks it up by its name needs the lock of the root, should the kernel have dropped the name.
  await two.ask(`keep('lib', os.open('${world.root}/lib', os.O_RDONLY))`);
  await world.toy('hold', 'Unlink', 'Create');
  one.tell(`os.unlink('${world.root}/small')`);
  await until('the upcall', async () => (await world.toy('held')) === 1);
  two.tell("os.open('new', os.O_RDWR | os.O_CREAT, dir_fd=kept['lib'])");
  await until('both upcalls', async () => (await world.toy('held')) === 2);
  process.kill(one.pid, 'SIGKILL');
  t.is((await one.program.end).signal, 'SIGKILL');
  await world.toy('hold');
  await world.toy('again');
  t.true(Number(await two.answer()) > 2);
  // The one that was ended was not done.
  t.is(await readFile(`${world.root}/small`, 'utf8'), 'small content');
  t.is((await world.fixture.stats()).interrupted, 1);
});

test('a signal that is handled does not end a request of the tree', async (t) => {
  const world = await World.make(t, { ready: true });
  await world.toy('hold', 'Create');
  const snake = await Snake.start(world.fixture);
  await snake.ask("keep('s', __import__('signal').signal(10, lambda *a: None))");
  snake.tell(`os.open('${world.root}/new', os.O_RDWR | os.O_CREAT)`);
  await until('the upcall', async () => (await world.toy('held')) === 1);
  process.kill(snake.pid, 'SIGUSR1');
  await sleep(300);
  t.true(snake.silent);
  await world.toy('hold');
  await world.toy('again');
  t.true(Number(await snake.answer()) > 2);
});

test('once the tree is gone its requests end with EIO, and the image is readable still', async (t) => {
  const world = await World.make(t, { ready: true });
  await world.toy('hold', 'Create');
  const snake = await Snake.start(world.fixture);
  snake.tell(`os.open('${world.root}/new', os.O_RDWR | os.O_CREAT)`);
  await until('the upcall', async () => (await world.toy('held')) === 1);
  await world.toy('close');
  t.deepEqual(await snake.answer(), { errno: EIO });
  t.deepEqual(await snake.ask(`os.mkdir('${world.root}/d')`), { errno: EIO });
  t.is(await readFile(`${world.root}/small`, 'utf8'), 'small content');
  await world.fixture.send({ do: 'unmount', mount: 0, detach: false });
});

test('abort ends a session whose requests and notifications wait for each other', async (t) => {
  const world = await World.make(t, { ready: true });
  await world.toy('hold', 'Create', 'Unlink');
  const one = await Snake.start(world.fixture);
  // Holds the lock of the root directory, for which the notification waits.
  one.tell(`os.open('${world.root}/new', os.O_RDWR | os.O_CREAT)`);
  await until('the upcall', async () => (await world.toy('held')) === 1);
  const invalidated = world.toy('invalidate', 1, 'small');
  const two = await Snake.start(world.fixture);
  two.tell(`os.unlink('${world.root}/other')`);
  await world.fixture.send({ do: 'abort', mount: 0 });
  await invalidated;
  const errnos = [await one.answer(), await two.answer()].map(
    (said) => (said as { errno: number }).errno,
  );
  // ENOENT: the mount was detached before the second one came to it.
  t.true(
    errnos.every((errno) => [EIO, ENOTCONN, ECONNABORTED, EINTR, ENOENT].includes(errno)),
    `${errnos}`,
  );
});
