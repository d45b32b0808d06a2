// Requests that wait for contents: what ends a wait, and what does not.
import { chmod, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { Actor } from './actor.ts';
import { Fixture, noise, sleep, Tree, until, withinOnce } from './fixture.ts';

const { EIO, ENOSPC } = constants.errno;
const LARGE = noise(3 * PART_BYTES + 1234, 7);

function tree(): Tree {
  const made = new Tree();
  made.file('small', 'small content');
  made.file('other', 'other content');
  made.file('large', LARGE);
  made.file('empty', '');
  return made;
}

for (const passthrough of [true, false]) {
  const how = passthrough ? 'passthrough' : 'no passthrough';

  test(`an open of a file of one part waits until it has arrived (${how})`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    const { points } = await fixture.mount({ passthrough });
    const actor = await Actor.start(fixture);
    actor.tell(`open ${points[0]}/small`);
    await fixture.untilWaiting(1);
    t.true(await actor.silentFor(110));
    // Another content does not end it.
    await fixture.arrive('other');
    t.true(await actor.silentFor(110));
    await fixture.arrive('small');
    const fd = Number((await actor.answer()).slice(3));
    t.is((await actor.pread(fd, 0, 100)).toString(), 'small content');
    const content = fixture.content('small');
    t.deepEqual(await fixture.events(), [
      { event: 'wanted', mount: 0, content, first: 0, last: 0 },
    ]);
    const stats = await fixture.stats();
    t.is(stats.waits, 1);
    t.true(stats.waitedMs >= 200);
    t.is(stats.passthroughOpens, passthrough ? 1 : 0);
    t.true(stats.firstReadAt > 0);
  });

  test(`reads of a larger file wait for the parts that they touch (${how})`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    const { points } = await fixture.mount({ passthrough });
    const actor = await Actor.start(fixture);
    await fixture.arriveParts('large', [2]);
    const fd = await actor.open(`${points[0]}/large`);
    const within = 2 * PART_BYTES + 100;
    t.deepEqual(await actor.pread(fd, within, 50), LARGE.subarray(within, within + 50));
    // Across the edge to a part that is missing.
    const edge = 2 * PART_BYTES - 10;
    actor.tell(`pread ${fd} ${edge} 20`);
    await fixture.untilWaiting(1);
    await fixture.arriveParts('large', [0]);
    t.true(await actor.silentFor(110));
    await fixture.arriveParts('large', [1]);
    t.is(await actor.answer(), `bytes ${LARGE.subarray(edge, edge + 20).toString('hex')}`);
    const wanted = (await fixture.events()).filter((e) => e.event === 'wanted');
    t.true(
      wanted.some((e) => e.first === 1 && e.last === 1),
      JSON.stringify(wanted),
    );
    // The kept descriptor still serves after the file was renamed to its final name.
    await fixture.arriveParts('large', [3]);
    await fixture.completeParts('large');
    t.deepEqual(await actor.pread(fd, 0, 64), LARGE.subarray(0, 64));
    t.deepEqual(await actor.pread(fd, LARGE.length - 5, 64), LARGE.subarray(-5));
    t.true(LARGE.equals(await readFile(`${points[0]}/large`)));
  });
}

for (const passthrough of [true, false]) {
  const how = passthrough ? 'passthrough' : 'no passthrough';

  test(`a file that another image brought is read whole by who had it open (${how})`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    const { points } = await fixture.mount({ passthrough });
    const actor = await Actor.start(fixture);
    await fixture.arriveParts('large', [0, 3]);
    const fd = await actor.open(`${points[0]}/large`);
    t.deepEqual(await actor.pread(fd, 0, 50), LARGE.subarray(0, 50));
    // The parts in between never come: the store has the whole under its digest, and the partial
    // file goes.
    const content = fixture.content('large');
    await rm(join(fixture.dir, 'incoming', `${fixture.partialPrefix}.${content}`));
    await fixture.arrive('large');
    const hole = 2 * PART_BYTES - 10;
    t.deepEqual(await actor.pread(fd, hole, 50), LARGE.subarray(hole, hole + 50));
  });

  test(`a content that was lost and fetched again is what later opens read (${how})`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    const { points } = await fixture.mount({ passthrough });
    const content = fixture.content('small');
    const digest = fixture.digest(content);
    const place = join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2));
    await fixture.store([content]);
    await chmod(place, 0o644);
    await writeFile(place, 'rotten bytes!');
    await fixture.send({ do: 'markReady', indexes: [content] });
    t.is(await readFile(`${points[0]}/small`, 'utf8'), 'rotten bytes!');
    await rename(place, join(fixture.dir, 'quarantined'));
    await fixture.send({ do: 'markFailed', indexes: [content], errno: EIO });
    await t.throwsAsync(readFile(`${points[0]}/small`), { code: 'EIO' });
    await fixture.arrive('small');
    t.is(await readFile(`${points[0]}/small`, 'utf8'), 'small content');
  });
}

test('an empty file never waits', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  t.is((await readFile(`${points[0]}/empty`)).length, 0);
  t.is((await fixture.stats()).waits, 0);
});

test('a content in incoming is readable', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const content = fixture.content('small');
  await fixture.store([content], 'incoming');
  await fixture.send({ do: 'markReady', indexes: [content] });
  t.is(await readFile(`${points[0]}/small`, 'utf8'), 'small content');
});

test('a content that is marked but not there is EIO, not "no such file"', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  await fixture.send({ do: 'markReady', indexes: [fixture.content('small')] });
  await t.throwsAsync(readFile(`${points[0]}/small`), { code: 'EIO' });
});

test('a wait ends with EIO at its bound, and a later one starts anew', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ waitTimeoutMs: 300 });
  let reads = 0;
  const ms = await withinOnce(1500, async () => {
    reads++;
    const started = performance.now();
    await t.throwsAsync(readFile(`${points[0]}/small`), { code: 'EIO' });
    return performance.now() - started;
  });
  t.true(ms >= 300 && ms < 1500, `${ms} ms`);
  const large = await Actor.start(fixture);
  const fd = await large.open(`${points[0]}/large`);
  t.is(await large.ask(`pread ${fd} 0 10`), `error ${EIO}`);
  const timeouts = (await fixture.events()).filter((e) => e.event === 'timeout');
  t.is(timeouts.length, reads + 1);
  t.true(timeouts.every((e) => e.waitedMs >= 300));
  t.is((await fixture.stats()).timeouts, reads + 1);
  await fixture.arrive('small');
  t.is(await readFile(`${points[0]}/small`, 'utf8'), 'small content');
});

test('a failed content ends its waits with the errno, until the failure is cleared', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const small = fixture.content('small');
  const large = fixture.content('large');
  const opener = await Actor.start(fixture);
  const reader = await Actor.start(fixture);
  opener.tell(`open ${points[0]}/small`);
  const fd = await reader.open(`${points[0]}/large`);
  reader.tell(`pread ${fd} 0 10`);
  await fixture.untilWaiting(2);
  await fixture.send({ do: 'markFailed', indexes: [small, large], errno: ENOSPC });
  t.is(await opener.answer(), `error ${ENOSPC}`);
  t.is(await reader.answer(), `error ${ENOSPC}`);
  t.is(await opener.ask(`open ${points[0]}/small`), `error ${ENOSPC}`);
  t.is(await reader.ask(`pread ${fd} 0 10`), `error ${ENOSPC}`);
  t.is(await fixture.send({ do: 'state', content: small }), 4);
  await fixture.send({ do: 'clearFailed', indexes: [small, large] });
  t.is(await fixture.send({ do: 'state', content: small }), 0);
  opener.tell(`open ${points[0]}/small`);
  await fixture.untilWaiting(1);
  await fixture.arrive('small');
  t.regex(await opener.answer(), /^fd /);
  await fixture.arriveParts('large', [0]);
  t.deepEqual(await reader.pread(fd, 0, 10), LARGE.subarray(0, 10));
});

for (const path of ['small', 'large']) {
  test(`kill -9 of a program that waits for ${path} returns within a second`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    const { points } = await fixture.mount();
    let kills = 0;
    const kill = async () => {
      const cat = fixture.start('cat', join(points[0]!, path));
      await fixture.untilWaiting(1);
      const killed = performance.now();
      cat.child.kill('SIGKILL');
      t.is((await cat.end).signal, 'SIGKILL');
      const ms = performance.now() - killed;
      await fixture.untilWaiting(0);
      t.is((await fixture.stats()).interrupted, ++kills);
      return ms;
    };
    const ms = await withinOnce(1000, kill);
    t.true(ms < 1000, `${ms} ms`);
  });

  test(`a signal that the program handles does not end its wait for ${path}; a fatal one after it does`, async (t) => {
    const fixture = await Fixture.make(t, tree());
    const { points } = await fixture.mount();
    const actor = await Actor.start(fixture);
    const waits = async () => {
      if (path === 'small') actor.tell(`open ${points[0]}/small`);
      else actor.tell(`pread ${await actor.open(`${points[0]}/large`)} 0 13`);
      await fixture.untilWaiting(1);
    };
    await waits();
    process.kill(actor.pid, 'SIGUSR1');
    process.kill(actor.pid, 'SIGSTOP');
    process.kill(actor.pid, 'SIGCONT');
    t.true(await actor.silentFor(400));
    t.is(await fixture.send({ do: 'waiting' }), 1);
    if (path === 'small') await fixture.arrive('small');
    else await fixture.arriveParts('large', [0]);
    t.regex(await actor.answer(), path === 'small' ? /^fd / : /^bytes .{26}$/);
    t.is(await actor.ask('signals'), 'signals 1');

    const second = await Fixture.make(t, tree());
    const mounted = await second.mount();
    const file = `${mounted.points[0]}/${path}`;
    const ms = await withinOnce(1000, async () => {
      const other = await Actor.start(second);
      if (path === 'small') other.tell(`open ${file}`);
      else other.tell(`pread ${await other.open(file)} 0 13`);
      await second.untilWaiting(1);
      process.kill(other.pid, 'SIGUSR1');
      await sleep(300);
      t.true(other.program.running);
      const killed = performance.now();
      process.kill(other.pid, 'SIGUSR2');
      t.is((await other.program.end).signal, 'SIGUSR2');
      const took = performance.now() - killed;
      await second.untilWaiting(0);
      return took;
    });
    t.true(ms < 1000, `${ms} ms`);
  });
}

test('a read that the page cache waits for is killed as well', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const waiting = async () => Number(await fixture.send({ do: 'waiting' }));
  const ms = await withinOnce(1000, async () => {
    const actor = await Actor.start(fixture);
    const fd = await actor.open(`${points[0]}/large`);
    t.is(await actor.ask(`map private ${fd} ${LARGE.length}`), 'map 0');
    actor.tell('peek 0 5');
    // The kernel may have asked for what is read ahead, too.
    await until('it waits', async () => (await waiting()) > 0);
    const killed = performance.now();
    process.kill(actor.pid, 'SIGKILL');
    t.is((await actor.program.end).signal, 'SIGKILL');
    return performance.now() - killed;
  });
  t.true(ms < 1000, `${ms} ms`);
});

test('many waits of many programs end with one mark', async (t) => {
  const made = new Tree();
  const names = Array.from({ length: 200 }, (_, i) => `file${i}`);
  for (const name of names) made.file(name, `content of ${name}`);
  const fixture = await Fixture.make(t, made);
  const { points } = await fixture.mount();
  // libuv reads four files at a time; programs wait beside each other.
  const cats = Array.from({ length: 20 }, (_, i) =>
    fixture.start(
      'sh',
      '-c',
      `cd "$0" && cat ${names.filter((_, n) => n % 20 === i).join(' ')}`,
      points[0]!,
    ),
  );
  await fixture.untilWaiting(20);
  await fixture.arrive(...names);
  for (const [i, cat] of cats.entries()) {
    t.is((await cat.end).code, 0, cat.err);
    t.is(
      cat.out,
      names
        .filter((_, n) => n % 20 === i)
        .map((name) => `content of ${name}`)
        .join(''),
    );
  }
  t.is((await fixture.stats()).waits, 20);
});
