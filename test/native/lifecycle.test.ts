// How sessions begin and end: shared templates, busy and lazy unmounts, ends from outside, processes
// that die, and files that are damaged.
import { execFile } from 'node:child_process';
import { mkdir, open, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { isDeepStrictEqual, promisify } from 'node:util';
import test from 'ava';
import { HEADER, PART_BYTES, ROW } from '../../src/delta/toc-layout.ts';
import { Actor } from './actor.ts';
import { Fixture, noise, Tree, until } from './fixture.ts';

const run = promisify(execFile);
const { EIO } = constants.errno;

function tree(): Tree {
  const made = new Tree();
  made.file('dir/small', 'small content');
  made.file('late', 'late content');
  made.file('large', noise(2 * PART_BYTES, 1));
  return made;
}

async function mounted(point: string): Promise<boolean> {
  return (await readFile('/proc/self/mountinfo', 'utf8')).includes(` ${point} `);
}

/** Descriptors of the mounting process that name /dev/fuse, and its threads. */
async function held(pid: number): Promise<{ devices: number; threads: number }> {
  let devices = 0;
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const name = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => 'closed meanwhile');
    if (name === '/dev/fuse') devices++;
  }
  const names = await Promise.all(
    (await readdir(`/proc/${pid}/task`)).map((tid) =>
      readFile(`/proc/${pid}/task/${tid}/comm`, 'utf8').catch(() => ''),
    ),
  );
  return { devices, threads: names.filter((name) => name.startsWith('fl-')).length };
}

/**
 * Waits until the mounting process holds these. A thread gives itself its name when it first runs, and one that
 * has been joined can still be seen for a moment.
 */
async function untilHeld(fixture: Fixture, want: Awaited<ReturnType<typeof held>>): Promise<void> {
  let last: unknown;
  await until(
    () => `${JSON.stringify(want)}: ${JSON.stringify(last)}`,
    async () => {
      last = await held(fixture.child.pid!);
      return isDeepStrictEqual(last, want);
    },
  );
}

test('two sessions share a template: a content arrives in both', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ count: 2 });
  const actors = [await Actor.start(fixture), await Actor.start(fixture)];
  for (const [i, actor] of actors.entries()) actor.tell(`open ${points[i]}/late`);
  await fixture.untilWaiting(2);
  await fixture.arrive('late');
  for (const actor of actors) t.regex(await actor.answer(), /^fd /);
  for (const mount of [0, 1]) t.is((await fixture.stats(mount)).waits, 1);
  const wanted = (await fixture.events()).map((e) => e.mount);
  t.deepEqual(wanted.sort(), [0, 1]);
  // The end of one is nothing to the other.
  await fixture.send({ do: 'unmount', mount: 0, detach: true });
  actors[1]!.tell(`pread ${await actors[1]!.open(`${points[1]}/large`)} 0 4`);
  await fixture.untilWaiting(1);
  await fixture.arriveParts('large', [0]);
  t.regex(await actors[1]!.answer(), /^bytes /);
});

test('an unmount leaves no thread, descriptor or event behind, and the template can be closed', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ threads: 3 });
  await untilHeld(fixture, { devices: 3, threads: 4 });
  await t.throwsAsync(fixture.send({ do: 'closeTemplate' }), { code: 'EBUSY' });
  await fixture.send({ do: 'unmount', mount: 0, detach: false });
  t.false(await mounted(points[0]!));
  await untilHeld(fixture, { devices: 0, threads: 0 });
  t.deepEqual(await fixture.events(), [{ event: 'closed', mount: 0, error: null }]);
  await fixture.send({ do: 'unmount', mount: 0, detach: false });
  t.deepEqual(await fixture.events(), []);
  await fixture.send({ do: 'closeTemplate' });
  await t.throwsAsync(fixture.send({ do: 'waiting' }), { code: 'EBADF' });
});

test('a busy mount is not unmounted, and goes on', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  await fixture.arrive('dir/small');
  const actor = await Actor.start(fixture);
  actor.tell(`open ${points[0]}/late`);
  await fixture.untilWaiting(1);
  await t.throwsAsync(fixture.send({ do: 'unmount', mount: 0, detach: false }), { code: 'EBUSY' });
  t.is(await readFile(`${points[0]}/dir/small`, 'utf8'), 'small content');
  await fixture.arrive('late');
  t.regex(await actor.answer(), /^fd /);
});

test('a lazy unmount ends what waits, serves what is open, and closes with its last user', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount({ passthrough: false });
  await fixture.arrive('dir/small');
  const waiter = await Actor.start(fixture);
  waiter.tell(`open ${points[0]}/late`);
  await fixture.untilWaiting(1);
  const user = await Actor.start(fixture);
  const fd = await user.open(`${points[0]}/dir/small`);
  await fixture.send({ do: 'unmount', mount: 0, detach: true });
  t.is(await waiter.answer(), `error ${EIO}`);
  t.false(await mounted(points[0]!));
  t.deepEqual(await user.pread(fd, 0, 5), Buffer.from('small'));
  t.deepEqual(
    (await fixture.events()).filter((e) => e.event === 'closed'),
    [],
  );
  t.is(await user.ask(`close ${fd}`), 'ok');
  await until('closed', async () => (await fixture.events()).some((e) => e.event === 'closed'));
  await untilHeld(fixture, { devices: 0, threads: 0 });
});

test('abort ends a detached mount under its users', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const user = await Actor.start(fixture);
  const fd = await user.open(`${points[0]}/large`);
  await fixture.send({ do: 'unmount', mount: 0, detach: true });
  await fixture.send({ do: 'abort', mount: 0 });
  t.deepEqual(await fixture.events(), [{ event: 'closed', mount: 0, error: null }]);
  await untilHeld(fixture, { devices: 0, threads: 0 });
  t.regex(await user.ask(`pread ${fd} 0 5`), /^error /);
  await fixture.send({ do: 'abort', mount: 0 });
  await fixture.send({ do: 'closeTemplate' });
});

test('an unmount from outside is heard once', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  await run('umount', [points[0]!]);
  const events: unknown[] = [];
  await until('closed', async () => {
    events.push(...(await fixture.events()));
    return events.length > 0;
  });
  t.deepEqual(events, [{ event: 'closed', mount: 0, error: null }]);
  await untilHeld(fixture, { devices: 0, threads: 0 });
  await fixture.send({ do: 'unmount', mount: 0, detach: false });
  await fixture.send({ do: 'closeTemplate' });
});

test('an unmount from outside while a program waits ends with the program', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const actor = await Actor.start(fixture);
  actor.tell(`open ${points[0]}/late`);
  await fixture.untilWaiting(1);
  await run('umount', ['-l', points[0]!]);
  t.true(await actor.silentFor(100));
  await fixture.arrive('late');
  t.regex(await actor.answer(), /^fd /);
  actor.program.child.kill('SIGKILL');
  await until('closed', async () => (await fixture.events()).some((e) => e.event === 'closed'));
});

test('an aborted connection is heard', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const line = (await readFile('/proc/self/mountinfo', 'utf8'))
    .split('\n')
    .find((mount) => mount.includes(` ${points[0]} `))!;
  const control = join(fixture.dir, 'control');
  await mkdir(control);
  await run('mount', ['-t', 'fusectl', 'none', control]);
  const connection = `${control}/${line.split(' ')[2]!.split(':')[1]}/abort`;
  // The mount's own minor number names the connection: nobody else's can be hit.
  await writeFile(connection, '1');
  await until('closed', async () => (await fixture.events()).some((e) => e.event === 'closed'));
  await untilHeld(fixture, { devices: 0, threads: 0 });
  t.pass();
});

test('a process that ends without unmounting takes its mount along', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const actor = await Actor.start(fixture);
  actor.tell(`open ${points[0]}/late`);
  await fixture.untilWaiting(1);
  t.is(await fixture.exit(), 0);
  t.regex(await actor.answer(), /^error /);
  t.false(await mounted(points[0]!));
});

test('kill -9 of the process leaves a dead mount that umount -l clears', async (t) => {
  const fixture = await Fixture.make(t, tree());
  const { points } = await fixture.mount();
  const actor = await Actor.start(fixture);
  actor.tell(`open ${points[0]}/late`);
  await fixture.untilWaiting(1);
  fixture.child.kill('SIGKILL');
  t.regex(await actor.answer(), /^error /);
  await t.throwsAsync(readdir(points[0]!), { code: 'ENOTCONN' });
  await run('umount', ['-l', points[0]!]);
  t.deepEqual(await readdir(points[0]!), []);
});

test('a mount that cannot be made says why and leaves nothing', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.startChild();
  const request = (mountPoint: string) =>
    fixture.send({
      do: 'mount',
      request: {
        toc: join(fixture.dir, 'toc'),
        digests: join(fixture.dir, 'digests'),
        contentDir: join(fixture.dir, 'content'),
        incomingDir: join(fixture.dir, 'incoming'),
        partialPrefix: 'p',
        mounts: [{ mountPoint }],
      },
    });
  await t.throwsAsync(request(join(fixture.dir, 'absent')), { code: 'ENOENT' });
  await t.throwsAsync(request(join(fixture.dir, 'toc')), { code: 'ENOTDIR' });
  await t.throwsAsync(request('relative/path'), { code: 'ERR_INVALID_ARG' });
  await untilHeld(fixture, { devices: 0, threads: 0 });
  await fixture.send({ do: 'closeTemplate' });
});

test('a damaged TOC is refused by its field', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.startChild();
  const good = await readFile(join(fixture.dir, 'toc'));
  const load = (toc: string) =>
    fixture.send({ do: 'loadOnly', toc, digests: join(fixture.dir, 'digests'), dir: fixture.dir });
  const rowAt = (row: number, field: number) => HEADER.bytes + row * ROW.bytes + field;
  const put = (value: number, at: number) => (toc: Buffer) => {
    toc.writeUInt32LE(value, at);
    return toc;
  };
  const damages: Record<string, (toc: Buffer) => Buffer> = {
    magic: put(1, HEADER.magic),
    'file size': (toc) => toc.subarray(0, toc.length - 1),
    'shorter than its header': (toc) => toc.subarray(0, 20),
    'rows offset': put(0, HEADER.rowsOffset),
    'contents offset': put(0xfffffff, HEADER.rows),
    'name outside the table': put(0xfffffff0, rowAt(1, ROW.nameOffset)),
    'children of a directory': put(0xffffffff, rowAt(0, ROW.b)),
    'content of a file': put(99, rowAt(2, ROW.a)),
    'hard link to a later row': put(3, rowAt(2, ROW.inode)),
    'xattrs of a row': put(0, rowAt(1, ROW.xattrs)),
  };
  for (const [field, damage] of Object.entries(damages)) {
    const path = join(fixture.dir, 'damaged');
    await writeFile(path, damage(Buffer.from(good)));
    const error = await t.throwsAsync(load(path), { code: 'EBADMSG' }, field);
    t.true(error?.message.includes(field), `${field}: ${error?.message}`);
  }
  await writeFile(join(fixture.dir, 'damaged'), Buffer.alloc(0));
  await t.throwsAsync(load(join(fixture.dir, 'damaged')), { code: 'EBADMSG' });
  await t.throwsAsync(load(join(fixture.dir, 'absent')), { code: 'ENOENT' });
  await load(join(fixture.dir, 'toc'));
});

test('a TOC or content file that shrinks while it is mounted crashes nothing', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, passthrough: false });
  for (const name of ['toc', 'digests']) await (await open(join(fixture.dir, name), 'w')).close();
  t.deepEqual(await readdir(`${points[0]}/dir`), ['small']);
  await t.throwsAsync(readFile(`${points[0]}/dir/small`), { code: 'EIO' });
  t.deepEqual(await readdir(points[0]!), ['dir', 'large', 'late']);
});

test('a content file of the wrong size is EIO', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  const digest = fixture.digest(fixture.content('late'));
  const path = join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2));
  await rm(path);
  await writeFile(path, 'short');
  await t.throwsAsync(readFile(`${points[0]}/late`), { code: 'EIO' });
});

test('overlayfs on top: reads, whiteouts and copies up', async (t) => {
  const fixture = await Fixture.make(t, tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true });
  for (const sub of ['upper', 'work', 'merged']) await mkdir(join(fixture.dir, sub));
  const merged = join(fixture.dir, 'merged');
  const layers = `lowerdir=${points[0]},upperdir=${fixture.dir}/upper,workdir=${fixture.dir}/work`;
  await run('mount', ['-t', 'overlay', 'overlay', '-o', layers, merged]);
  t.is(await readFile(`${merged}/dir/small`, 'utf8'), 'small content');
  await writeFile(`${merged}/dir/small`, 'more', { flag: 'a' });
  await rm(`${merged}/late`);
  await writeFile(`${merged}/new`, 'new');
  t.is(await readFile(`${merged}/dir/small`, 'utf8'), 'small contentmore');
  t.is(await readFile(`${points[0]}/dir/small`, 'utf8'), 'small content');
  t.deepEqual((await readdir(merged)).sort(), ['dir', 'large', 'new']);
  t.true((await fixture.stats()).passthroughOpens > 0);
});

test('a second mount of a large image costs little memory', async (t) => {
  const made = new Tree();
  for (let d = 0; d < 100; d++) {
    for (let f = 0; f < 200; f++) made.file(`usr/share/directory-${d}/file-${f}.data`, `${d}/${f}`);
  }
  const fixture = await Fixture.make(t, made);
  const { points } = await fixture.mount({ count: 2 });
  const dirtyKib = async () =>
    Number(
      /^Private_Dirty:\s+(\d+)/m.exec(
        await readFile(`/proc/${fixture.child.pid}/smaps_rollup`, 'utf8'),
      )?.[1],
    );
  const walk = (point: string) => run('find', [point, '-newermt', '2100-01-01']);
  await walk(points[0]!);
  // When it has come to rest.
  let before = 0;
  await until('the same twice', async () => {
    const last = before;
    before = await dirtyKib();
    return before === last;
  });
  await walk(points[1]!);
  const grown = (await dirtyKib()) - before;
  t.true(grown < 5 * 1024, `${grown} KiB more`);
});
