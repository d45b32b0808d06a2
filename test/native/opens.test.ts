// Opens that the kernel makes alone: when it begins to, what it reads then and how, and what it is
// told when a content is lost. What does not live here: who decides (src/tree/fs-instance.ts).
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { OPENS, type Opens } from '../../src/native/index.ts';
import { Actor } from './actor.ts';
import { Fixture, noise, Tree, until } from './fixture.ts';

const { EIO, ENOSPC } = constants.errno;
const LARGE = noise(5 * PART_BYTES + 1234, 11);
const SPARSE = Buffer.concat([noise(5000, 1), Buffer.alloc(2 * PART_BYTES), noise(7, 2)]);
const run = promisify(execFile);

async function tree(): Promise<Tree> {
  const made = new Tree();
  made.file('small', 'small content');
  made.file('other', 'other content');
  made.file('page', noise(4096, 3));
  made.file('bin/cat', await readFile('/bin/cat'), { mode: 0o755 });
  made.file('lib/large.so', LARGE);
  made.file('sparse', SPARSE);
  made.file('empty', '');
  return made;
}

interface World {
  fixture: Fixture;
  root: string;
  actor: Actor;
}

/** Everything is there; mounted directly, or below overlayfs. */
async function world(
  t: ExecutionContext,
  opens: Opens,
  { below = 'no overlay', passthrough = true } = {},
): Promise<World> {
  const fixture = await Fixture.make(t, await tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, opens, passthrough });
  let root = points[0]!;
  if (below === 'overlayfs') {
    for (const sub of ['upper', 'work', 'merged']) await mkdir(join(fixture.dir, sub));
    const layers = `lowerdir=${root},upperdir=${fixture.dir}/upper,workdir=${fixture.dir}/work`;
    root = join(fixture.dir, 'merged');
    await run('mount', ['-t', 'overlay', 'overlay', '-o', layers, root]);
  }
  return { fixture, root, actor: await Actor.start(fixture) };
}

function setOpens(fixture: Fixture, opens: Opens): Promise<unknown> {
  return fixture.send({ do: 'setOpens', mount: 0, opens });
}

/** State of a process as /proc says it, such as D. */
async function stateOf(pid: number): Promise<string | undefined> {
  return / ([A-Za-z]) /.exec(
    (await readFile(`/proc/${pid}/stat`, 'utf8')).replace(/^.*\)/, ''),
  )?.[1];
}

/** Opens until the kernel has been told: the RELEASE of a passthrough handle comes after its close. */
async function untilUnseen({ fixture, root }: World): Promise<void> {
  await until('unseen opens', async () => {
    await readFile(`${root}/other`);
    return (await fixture.stats()).opensUnseen;
  });
}

for (const below of ['no overlay', 'overlayfs']) {
  test(`the first open is the last that comes (${below})`, async (t) => {
    const { fixture, root } = await world(t, OPENS.Unseen, { below });
    t.false((await fixture.stats()).opensUnseen);
    t.is(await readFile(`${root}/small`, 'utf8'), 'small content');
    const first = await fixture.stats();
    t.true(first.opensUnseen);
    t.is(first.opens, 1);
    for (const name of ['small', 'other', 'page', 'empty']) await readFile(`${root}/${name}`);
    // What the kernel has, it does not ask for again, unless somebody on this machine drops its caches.
    let later = await fixture.stats();
    for (let tries = 3, asked = 1; asked > 0; tries--) {
      if (tries === 0) throw new Error(`${asked} reads of what is cached`);
      const { stdout } = await run('cat', [`${root}/small`, `${root}/page`, `${root}/other`]);
      t.true(stdout.startsWith('small content'));
      const now = await fixture.stats();
      asked = now.reads - later.reads;
      later = now;
    }
    // Last: the kernel goes on reading ahead when the reader is through.
    await readFile(`${root}/lib/large.so`);
    const last = await fixture.stats();
    t.true(last.reads > later.reads);
    t.is(last.opens, 1);
    t.is(last.passthroughOpens, 0);
  });

  test(`every way to read gives the same bytes when opens are unseen (${below})`, async (t) => {
    const { fixture, root, actor } = await world(t, OPENS.Unseen, { below });
    t.is((await readFile(`${root}/empty`)).length, 0);
    t.true(SPARSE.equals(await readFile(`${root}/sparse`)));
    t.is((await run(`${root}/bin/cat`, [`${root}/small`])).stdout, 'small content');
    const file = `${root}/lib/large.so`;
    // Not in order, so that it is not all read ahead.
    const fd = await actor.open(file);
    for (const at of [3 * PART_BYTES - 7, 100, LARGE.length - 20, 5 * PART_BYTES]) {
      t.deepEqual(await actor.pread(fd, at, 50), LARGE.subarray(at, at + 50));
    }
    t.deepEqual(await actor.pread(fd, LARGE.length, 50), Buffer.alloc(0));
    for (const [map, kind] of ['private', 'shared'].entries()) {
      t.is(await actor.ask(`map ${kind} ${fd} ${LARGE.length}`), `map ${map}`);
      const at = (map + 1) * PART_BYTES + 99;
      t.is(await actor.ask(`peek ${map} ${at}`), `byte ${LARGE[at]}`);
    }
    t.is(await actor.ask(`close ${fd}`), 'ok');
    t.is(await actor.ask('peek 0 17'), `byte ${LARGE[17]}`);
    t.true(LARGE.equals(await readFile(file)));
    await run('python3', ['-c', OTHER_WAYS, file, join(fixture.dir, 'out')]);
    t.is((await fixture.stats()).opens, 1);
  });
}

/** O_DIRECT, sendfile and splice of the file in argv[1] into argv[2]: each must give what read gives. */
const OTHER_WAYS = `
import mmap, os, sys
file, out = sys.argv[1:]
want = open(file, 'rb').read()
def check(how):
    got = open(out, 'rb').read()
    assert got == want, (how, len(got), len(want))
def pump(how, step):
    source = os.open(file, os.O_RDONLY)
    sink = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while step(source, sink): pass
    os.close(source); os.close(sink)
    check(how)
pump('sendfile', lambda a, b: os.sendfile(b, a, None, 1 << 20))
r, w = os.pipe()
def splice(a, b):
    n = os.splice(a, w, 1 << 16)
    left = n
    while left: left -= os.splice(r, b, left)
    return n
pump('splice', splice)
direct = os.open(file, os.O_RDONLY | os.O_DIRECT)
room = mmap.mmap(-1, 1 << 20)
data = b''
while True:
    n = os.readv(direct, [room])
    if n == 0: break
    data += room[:n]
assert data == want, ('O_DIRECT', len(data), len(want))
`;

test('a passthrough handle keeps opens seen, and its file usable, until it is closed', async (t) => {
  const here = await world(t, OPENS.Seen);
  const { fixture, root, actor } = here;
  const fd = await actor.open(`${root}/lib/large.so`);
  t.is((await fixture.stats()).passthroughOpens, 1);
  t.true(await setOpens(fixture, OPENS.Unseen));
  // The same file, and another: the kernel would refuse to open the first through its cache.
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
  t.is(await readFile(`${root}/small`, 'utf8'), 'small content');
  const held = await fixture.stats();
  t.false(held.opensUnseen);
  t.is(held.opens, 3);
  // Only beside the one that has it: no more are added.
  t.is(held.passthroughOpens, 2);
  t.deepEqual(await actor.pread(fd, 1000, 30), LARGE.subarray(1000, 1030));
  t.is(await actor.ask(`close ${fd}`), 'ok');
  await untilUnseen(here);
  const { opens } = await fixture.stats();
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
  t.is((await fixture.stats()).opens, opens);
});

test('a program that was started with passthrough keeps opens seen until it ends', async (t) => {
  const here = await world(t, OPENS.Seen);
  const { fixture, root, actor } = here;
  const cat = fixture.start(`${root}/bin/cat`);
  cat.child.stdin!.write('line\n');
  await until('the program runs', async () => cat.out === 'line\n');
  // A mapping of a file that was closed is one of the content's file: the kernel has let go of ours.
  const fd = await actor.open(`${root}/lib/large.so`);
  t.is(await actor.ask(`map shared ${fd} ${LARGE.length}`), 'map 0');
  t.is(await actor.ask(`close ${fd}`), 'ok');
  t.true(await setOpens(fixture, OPENS.Unseen));
  t.is((await run(`${root}/bin/cat`, [`${root}/small`])).stdout, 'small content');
  t.false((await fixture.stats()).opensUnseen);
  cat.child.stdin!.end();
  await untilUnseen(here);
  t.is(await actor.ask('peek 0 5'), `byte ${LARGE[5]}`);
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
});

test('what was opened through the cache does not keep opens seen, and is read on', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Cached);
  const fd = await actor.open(`${root}/lib/large.so`);
  const map = await actor.ask(`map shared ${fd} ${LARGE.length}`);
  t.is(map, 'map 0');
  t.is((await fixture.stats()).passthroughOpens, 0);
  t.true(await setOpens(fixture, OPENS.Unseen));
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
  t.true((await fixture.stats()).opensUnseen);
  t.deepEqual(await actor.pread(fd, LARGE.length - 9, 30), LARGE.subarray(-9));
  t.is(await actor.ask('peek 0 70000'), `byte ${LARGE[70000]}`);
  t.is(await actor.ask(`close ${fd}`), 'ok');
});

test('a file that is open while it arrives is read on when opens are unseen', async (t) => {
  const fixture = await Fixture.make(t, await tree());
  const { points } = await fixture.mount({ opens: OPENS.Cached });
  const root = points[0]!;
  const actor = await Actor.start(fixture);
  await fixture.arriveParts('lib/large.so', [0, 1]);
  const fd = await actor.open(`${root}/lib/large.so`);
  t.is(await actor.ask(`map shared ${fd} ${LARGE.length}`), 'map 0');
  t.is(await actor.ask('peek 0 5'), `byte ${LARGE[5]}`);
  const late = await Actor.start(fixture);
  late.tell(`open ${root}/small`);
  await fixture.untilWaiting(1);
  await fixture.arrive('other');
  t.true(await setOpens(fixture, OPENS.Unseen));
  t.is(await readFile(`${root}/other`, 'utf8'), 'other content');
  t.true((await fixture.stats()).opensUnseen);
  // Opens that waited over the step end as ever.
  await fixture.arrive('small');
  const waited = Number((await late.answer()).slice(3));
  t.is((await late.pread(waited, 0, 99)).toString(), 'small content');
  await fixture.arriveParts('lib/large.so', [2, 3, 4, 5]);
  await fixture.completeParts('lib/large.so');
  t.deepEqual(
    await actor.pread(fd, 3 * PART_BYTES, 30),
    LARGE.subarray(3 * PART_BYTES).subarray(0, 30),
  );
  t.is(await actor.ask(`peek 0 ${LARGE.length - 1}`), `byte ${LARGE.at(-1)}`);
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
});

test('who wants to see opens is told whether it is too late', async (t) => {
  const { fixture, root } = await world(t, OPENS.Unseen);
  t.true(await setOpens(fixture, OPENS.Seen));
  await readFile(`${root}/small`);
  await readFile(`${root}/small`);
  const seen = await fixture.stats();
  t.is(seen.opens, 2);
  t.false(seen.opensUnseen);
  t.true(await setOpens(fixture, OPENS.Unseen));
  await untilUnseen({ fixture, root } as World);
  t.false(await setOpens(fixture, OPENS.Seen));
  const { opens } = await fixture.stats();
  await readFile(`${root}/page`);
  t.is((await fixture.stats()).opens, opens);
});

test('opens that race with the step all succeed', async (t) => {
  const { fixture, root } = await world(t, OPENS.Seen);
  const racers = Array.from({ length: 4 }, () => run('python3', ['-c', RACER, root]));
  await until('passthrough', async () => (await fixture.stats()).passthroughOpens > 50);
  t.true(await setOpens(fixture, OPENS.Unseen));
  await Promise.all(racers);
  await untilUnseen({ fixture, root } as World);
});

/** Opens and maps a few thousand times, and compares; ends with an error where anything fails. */
const RACER = `
import mmap, os, sys
root = sys.argv[1]
names = ['small', 'other', 'page', 'lib/large.so', 'sparse']
size = {n: os.stat(root + '/' + n).st_size for n in names}
for i in range(2000):
    name = names[i % len(names)]
    fd = os.open(root + '/' + name, os.O_RDONLY)
    if i % 3 == 0:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED if i % 2 else mmap.MAP_PRIVATE) as m: m[size[name] - 1]
    assert len(os.pread(fd, 100, 0)) == min(100, size[name])
    os.close(fd)
`;

test('a file of the store that is missing or has shrunk is EIO, not data', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Unseen);
  const place = (path: string) => {
    const digest = fixture.digest(fixture.content(path));
    return join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2));
  };
  await rm(place('small'));
  await truncate(place('page'), 100);
  t.is(await readFile(`${root}/other`, 'utf8'), 'other content');
  await t.throwsAsync(readFile(`${root}/small`), { code: 'EIO' });
  await t.throwsAsync(readFile(`${root}/page`), { code: 'EIO' });
  // While it is kept open between two reads.
  const fd = await actor.open(`${root}/lib/large.so`);
  t.deepEqual(await actor.pread(fd, 10, 10), LARGE.subarray(10, 20));
  await truncate(place('lib/large.so'), 4 * PART_BYTES);
  t.is(await actor.ask(`pread ${fd} ${5 * PART_BYTES} 10`), `error ${EIO}`);
  t.is(await actor.ask(`map private ${fd} ${LARGE.length}`), 'map 0');
  t.is(await actor.ask(`peek 0 ${5 * PART_BYTES}`), 'sigbus');
});

test('what the kernel has cached of a content that is lost is not read any more', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Unseen);
  const content = fixture.content('small');
  const digest = fixture.digest(content);
  const place = join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2));
  await chmod(place, 0o644);
  await writeFile(place, 'rotten bytes!');
  t.is(await readFile(`${root}/small`, 'utf8'), 'rotten bytes!');
  const fd = await actor.open(`${root}/small`);
  t.is(await actor.ask(`map private ${fd} 13`), 'map 0');
  t.is(await actor.ask('peek 0 0'), `byte ${'r'.charCodeAt(0)}`);
  await rename(place, join(fixture.dir, 'quarantined'));
  await fixture.send({ do: 'markFailed', indexes: [content], errno: ENOSPC });
  // The kernel is told by a thread of its own.
  await until('an error', () =>
    readFile(`${root}/small`).then(
      () => false,
      () => true,
    ),
  );
  await t.throwsAsync(readFile(`${root}/small`), { code: 'ENOSPC' });
  t.is(await actor.ask(`pread ${fd} 0 13`), `error ${ENOSPC}`);
  t.is(await actor.ask('peek 0 0'), 'sigbus');
  // It is being fetched: reads wait, and a reader that is killed is gone at once.
  await fixture.send({ do: 'clearFailed', indexes: [content] });
  actor.tell(`pread ${fd} 0 13`);
  await fixture.untilWaiting(1);
  const victim = await Actor.start(fixture);
  victim.tell(`open ${root}/small`);
  const held = Number((await victim.answer()).slice(3));
  victim.tell(`pread ${held} 0 13`);
  // It waits for the page, not for a request of its own: it cannot be interrupted, but killed.
  await until('the second reader waits', async () => (await stateOf(victim.pid)) === 'D');
  const gone = once(victim.program.child, 'exit');
  victim.program.child.kill('SIGKILL');
  await gone;
  t.is(await fixture.send({ do: 'waiting' }), 1);
  t.deepEqual(
    (await fixture.events()).filter(({ event }) => event !== 'wanted'),
    [],
  );
  await fixture.arrive('small');
  t.is(await actor.answer(), `bytes ${Buffer.from('small content').toString('hex')}`);
  t.is(await actor.ask('peek 0 0'), `byte ${'s'.charCodeAt(0)}`);
  t.is(await readFile(`${root}/small`, 'utf8'), 'small content');
});

/** Damages the content of a file in the store, then puts it aside as verification does. */
async function damage(
  fixture: Fixture,
  path: string,
): Promise<{ content: number; lose(): Promise<void> }> {
  const content = fixture.content(path);
  const digest = fixture.digest(content);
  const place = join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2));
  await chmod(place, 0o644);
  await writeFile(place, Buffer.alloc(fixture.bytes(content).length, 'r'));
  const lose = async () => {
    await rename(place, join(fixture.dir, 'quarantined'));
    await fixture.send({ do: 'markFailed', indexes: [content], errno: EIO });
  };
  return { content, lose };
}

test('what was cached of a content that was lost while opens were seen is not read when they are unseen', async (t) => {
  for (const [opens, passthrough] of [
    [OPENS.Cached, true],
    [OPENS.Seen, false],
  ] as const) {
    const { fixture, root } = await world(t, opens, { passthrough });
    const { lose } = await damage(fixture, 'small');
    t.is(await readFile(`${root}/small`, 'utf8'), 'r'.repeat(13));
    await lose();
    await t.throwsAsync(readFile(`${root}/small`), { code: 'EIO' });
    await fixture.arrive('small');
    t.true(await setOpens(fixture, OPENS.Unseen));
    await untilUnseen({ fixture, root } as World);
    t.is(await readFile(`${root}/small`, 'utf8'), 'small content');
  }
});

test('who uses a mount that was detached does not read what is cached of a lost content either', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Unseen);
  const { lose } = await damage(fixture, 'small');
  await readFile(`${root}/other`);
  const fd = await actor.open(`${root}/small`);
  t.is((await actor.pread(fd, 0, 13)).toString(), 'r'.repeat(13));
  await fixture.send({ do: 'unmount', mount: 0, detach: true });
  await lose();
  await until('an error', async () => (await actor.ask(`pread ${fd} 0 13`)) === `error ${EIO}`);
  await fixture.arrive('small');
  t.is((await actor.pread(fd, 0, 13)).toString(), 'small content');
});

test('a large content that is lost is read in parts as it comes again', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Unseen);
  const file = `${root}/lib/large.so`;
  t.true(LARGE.equals(await readFile(file)));
  const content = fixture.content('lib/large.so');
  const digest = fixture.digest(content);
  await rm(join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2)));
  await fixture.send({ do: 'markFailed', indexes: [content], errno: EIO });
  await until('an error', () =>
    readFile(file).then(
      () => false,
      () => true,
    ),
  );
  await fixture.send({ do: 'clearFailed', indexes: [content] });
  await fixture.arriveParts('lib/large.so', [2]);
  const fd = await actor.open(file);
  const at = 2 * PART_BYTES + 500_000;
  t.deepEqual(await actor.pread(fd, at, 20), LARGE.subarray(at, at + 20));
  await fixture.arriveParts('lib/large.so', [0, 1, 3, 4, 5]);
  await fixture.completeParts('lib/large.so');
  t.true(LARGE.equals(await readFile(file)));
});

test('of a large content that came in parts and is lost, only parts that have come again are read', async (t) => {
  const fixture = await Fixture.make(t, await tree());
  const { points } = await fixture.mount({ opens: OPENS.Cached });
  await fixture.arriveParts('lib/large.so', [0, 1, 2, 3, 4, 5]);
  await fixture.completeParts('lib/large.so');
  await fixture.arrive('other');
  t.true(await setOpens(fixture, OPENS.Unseen));
  await untilUnseen({ fixture, root: points[0]! } as World);
  const content = fixture.content('lib/large.so');
  const digest = fixture.digest(content);
  await rm(join(fixture.dir, 'content', digest.slice(0, 2), digest.slice(2)));
  await fixture.send({ do: 'markFailed', indexes: [content], errno: EIO });
  await fixture.send({ do: 'clearFailed', indexes: [content] });
  // The file has holes before it.
  await fixture.arriveParts('lib/large.so', [5]);
  const actor = await Actor.start(fixture);
  const fd = await actor.open(`${points[0]}/lib/large.so`);
  const at = 5 * PART_BYTES + 500;
  t.deepEqual(await actor.pread(fd, at, 20), LARGE.subarray(at, at + 20));
  actor.tell(`pread ${fd} 2000000 20`);
  await fixture.untilWaiting(1);
  await fixture.arriveParts('lib/large.so', [0, 1, 2, 3, 4]);
  t.is(await actor.answer(), `bytes ${LARGE.subarray(2000000, 2000020).toString('hex')}`);
});

test('files of the store that are kept open leave room for others', async (t) => {
  const made = await tree();
  for (let i = 0; i < 100; i++) made.file(`many/${i}`, noise(8192, 100 + i));
  const fixture = await Fixture.make(t, made);
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, opens: OPENS.Unseen });
  const { pid } = fixture.child;
  const open = async () => (await readdir(`/proc/${pid}/fd`)).length;
  await untilUnseen({ fixture, root: points[0]! } as World);
  const before = await open();
  await run('prlimit', ['--pid', `${pid}`, `--nofile=${before + 80}:`]);
  await run('python3', ['-c', FIRST_PAGES, `${points[0]}/many`]);
  const after = await open();
  t.true(after > before, 'some are kept');
  t.true(after <= before + (before + 80) / 4);
});

/** Reads the first page of every file in argv[1], and no more. */
const FIRST_PAGES = `
import mmap, os, sys
room = mmap.mmap(-1, 4096)
for name in os.listdir(sys.argv[1]):
    fd = os.open(sys.argv[1] + '/' + name, os.O_RDONLY | os.O_DIRECT)
    assert os.readv(fd, [room]) == 4096
    os.close(fd)
`;

test('a file that is open through the cache can be opened when opens are to be seen, and keeps passthrough out', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Cached);
  const fd = await actor.open(`${root}/lib/large.so`);
  t.true(await setOpens(fixture, OPENS.Seen));
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
  t.is((await fixture.stats()).passthroughOpens, 0);
  t.is(await readFile(`${root}/small`, 'utf8'), 'small content');
  t.is((await fixture.stats()).passthroughOpens, 1);
  t.deepEqual(await actor.pread(fd, 7, 7), LARGE.subarray(7, 14));
  t.is(await actor.ask(`close ${fd}`), 'ok');
  await until('passthrough', async () => {
    await readFile(`${root}/lib/large.so`);
    return (await fixture.stats()).passthroughOpens > 1;
  });
});

/** A mount of a store whose files open when they are told to: `slow.arrive(place(PATH))`. */
async function slowStore(t: ExecutionContext, opens: Opens) {
  const fixture = await Fixture.make(t, await tree());
  const place = (path: string) => {
    const digest = fixture.digest(fixture.content(path));
    return `${digest.slice(0, 2)}/${digest.slice(2)}`;
  };
  const store = new Tree();
  for (let content = 0; content < fixture.toc.contents; content++) {
    const digest = fixture.digest(content);
    store.file(`${digest.slice(0, 2)}/${digest.slice(2)}`, fixture.bytes(content));
  }
  const slow = await Fixture.make(t, store);
  const { points: stores } = await slow.mount();
  await run('mount', ['--bind', stores[0]!, join(fixture.dir, 'content')]);
  const { points } = await fixture.mount({ ready: true, opens, threads: 2 });
  return { fixture, root: points[0]!, actor: await Actor.start(fixture), slow, place };
}

test('a file of the store that is slow to open keeps nobody else waiting', async (t) => {
  const { fixture, root, actor, slow, place } = await slowStore(t, OPENS.Unseen);
  const fd = await actor.open(`${root}/small`);
  t.true((await fixture.stats()).opensUnseen);
  actor.tell(`pread ${fd} 0 13`);
  await slow.untilWaiting(1);
  const other = fixture.start('stat', '-c', '%s', `${root}/lib/large.so`);
  await other.says(`${LARGE.length}`);
  await slow.arrive(place('small'));
  t.is(await actor.answer(), `bytes ${Buffer.from('small content').toString('hex')}`);
});

test('opens stay seen until the kernel has forgotten what it had cached of a lost content', async (t) => {
  const { fixture, root, actor, slow, place } = await slowStore(t, OPENS.Cached);
  await slow.arrive(place('other'), place('page'));
  // A page that is being read keeps whoever is to forget it waiting.
  const fd = await actor.open(`${root}/small`);
  actor.tell(`pread ${fd} 0 13`);
  await slow.untilWaiting(1);
  await fixture.send({ do: 'markFailed', indexes: [fixture.content('small')], errno: EIO });
  t.true(await setOpens(fixture, OPENS.Unseen));
  for (const name of ['other', 'page', 'other', 'page']) await readFile(`${root}/${name}`);
  const held = await fixture.stats();
  t.false(held.opensUnseen);
  t.is(held.opens, 5);
  await slow.arrive(place('small'));
  await actor.answer();
  await untilUnseen({ fixture, root, actor });
});

test('opens through the cache take no descriptor each, which would stay when opens are unseen', async (t) => {
  const { fixture, root, actor } = await world(t, OPENS.Cached);
  const open = async () => (await readdir(`/proc/${fixture.child.pid}/fd`)).length;
  const before = await open();
  const fds: number[] = [];
  for (let i = 0; i < 20; i++) fds.push(await actor.open(`${root}/lib/large.so`));
  // From the end on, so that nothing is read ahead of the next.
  for (const [i, fd] of fds.entries()) {
    const at = LARGE.length - 1000 - i * 260_000;
    t.deepEqual(await actor.pread(fd, at, 30), LARGE.subarray(at, at + 30));
  }
  t.true((await fixture.stats()).reads >= 20);
  t.true((await open()) - before < 10);
});

test('files that were read while they arrived hold no descriptor when opens are unseen', async (t) => {
  const made = await tree();
  const names = Array.from({ length: 30 }, (_, i) => `arriving/${i}`);
  for (const [i, name] of names.entries()) made.file(name, noise(PART_BYTES + 1000, 200 + i));
  const fixture = await Fixture.make(t, made);
  const { points } = await fixture.mount({ opens: OPENS.Cached });
  const actor = await Actor.start(fixture);
  const open = async () => (await readdir(`/proc/${fixture.child.pid}/fd`)).length;
  const before = await open();
  const fds: number[] = [];
  for (const name of names) {
    await fixture.arriveParts(name, [0]);
    const fd = await actor.open(`${points[0]}/${name}`);
    t.is((await actor.pread(fd, 5, 5)).length, 5);
    fds.push(fd);
  }
  t.true((await open()) >= before + names.length, 'each has one while it arrives');
  for (const name of names) {
    await fixture.arriveParts(name, [1]);
    await fixture.completeParts(name);
  }
  await fixture.arrive('other');
  t.true(await setOpens(fixture, OPENS.Unseen));
  await untilUnseen({ fixture, root: points[0]! } as World);
  t.true((await open()) < before + 10);
  for (const [i, fd] of fds.entries()) {
    const data = fixture.bytes(fixture.content(names[i]!));
    t.deepEqual(
      await actor.pread(fd, PART_BYTES - 3, 7),
      data.subarray(PART_BYTES - 3, PART_BYTES + 4),
    );
  }
});

test('without passthrough opens can be unseen as well', async (t) => {
  const { fixture, root } = await world(t, OPENS.Unseen, { passthrough: false });
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
  t.true(LARGE.equals(await readFile(`${root}/lib/large.so`)));
  t.is((await fixture.stats()).opens, 1);
});

test('two mounts of one image decide each for itself', async (t) => {
  const fixture = await Fixture.make(t, await tree());
  await fixture.storeAll();
  const { points } = await fixture.mount({ ready: true, count: 2 });
  t.true(await setOpens(fixture, OPENS.Unseen));
  for (const point of points) {
    t.true(LARGE.equals(await readFile(`${point}/lib/large.so`)));
    await readFile(`${point}/lib/large.so`);
  }
  t.is((await fixture.stats(0)).opens, 1);
  const second = await fixture.stats(1);
  t.is(second.opens, 2);
  t.is(second.passthroughOpens, 2);
});

test('a writable session sees every open, and says so', async (t) => {
  const fixture = await Fixture.make(t, await tree());
  await fixture.mount({ writable: true });
  await t.throwsAsync(async () => setOpens(fixture, OPENS.Unseen), { message: /writable/ });
});
