// Files that are opened and mapped while they arrive, and what later opens of them get. The kernel
// refuses passthrough beside a shared mapping of a direct handle, and such a mapping beside
// passthrough: neither may ever reach a program.
import { execFile } from 'node:child_process';
import { mkdir, readFile } from 'node:fs/promises';
import { constants } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { Actor } from './actor.ts';
import { Fixture, noise, Tree, until } from './fixture.ts';

const LARGE = noise(2 * PART_BYTES + 500, 3);
const run = promisify(execFile);

interface World {
  fixture: Fixture;
  /** Path of the file as programs see it. */
  file: string;
  /** Opens that got passthrough so far. */
  passthrough(): Promise<number>;
}

/** A file of three parts, two of which have arrived; directly, or below overlayfs. */
async function world(t: ExecutionContext, below: string): Promise<World> {
  const tree = new Tree();
  tree.file('lib/large.so', LARGE);
  const fixture = await Fixture.make(t, tree);
  let root = (await fixture.mount()).points[0]!;
  if (below === 'overlayfs') {
    const lower = root;
    for (const sub of ['upper', 'work', 'merged']) await mkdir(join(fixture.dir, sub));
    root = join(fixture.dir, 'merged');
    const layers = `lowerdir=${lower},upperdir=${fixture.dir}/upper,workdir=${fixture.dir}/work`;
    await run('mount', ['-t', 'overlay', 'overlay', '-o', layers, root]);
  }
  await fixture.arriveParts('lib/large.so', [0, 1]);
  const file = `${root}/lib/large.so`;
  const passthrough = async () => (await fixture.stats()).passthroughOpens;
  return { fixture, file, passthrough };
}

async function complete(fixture: Fixture): Promise<void> {
  await fixture.arriveParts('lib/large.so', [2]);
  await fixture.completeParts('lib/large.so');
}

/** Opens, maps, reads a byte of each end, closes; true where all of it worked. */
async function useWholly(
  t: ExecutionContext,
  actor: Actor,
  file: string,
  kind: string,
): Promise<void> {
  const fd = await actor.open(file);
  const map = await actor.ask(`map ${kind} ${fd} ${LARGE.length}`);
  t.regex(map, /^map /, `${kind} mapping`);
  const name = map.slice(4);
  t.is(await actor.ask(`peek ${name} 7`), `byte ${LARGE[7]}`);
  t.is(await actor.ask(`peek ${name} ${LARGE.length - 1}`), `byte ${LARGE.at(-1)}`);
  t.deepEqual(await actor.pread(fd, 1000, 30), LARGE.subarray(1000, 1030));
  t.is(await actor.ask(`close ${fd}`), 'ok');
  t.is(await actor.ask(`unmap ${name}`), 'ok');
}

for (const below of ['no overlay', 'overlayfs']) {
  test(`a private mapping of a closed file lets passthrough in (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const loader = await Actor.start(fixture);
    const fd = await loader.open(file);
    t.is(await loader.ask(`map private ${fd} ${LARGE.length}`), 'map 0');
    t.is(await loader.ask(`close ${fd}`), 'ok');
    t.is(await loader.ask('peek 0 5'), `byte ${LARGE[5]}`);
    // The last part is on its way: touching it waits.
    loader.tell(`peek 0 ${LARGE.length - 1}`);
    await fixture.untilWaiting(1);
    await complete(fixture);
    t.is(await loader.answer(), `byte ${LARGE.at(-1)}`);
    const other = await Actor.start(fixture);
    for (const kind of ['private', 'shared']) await useWholly(t, other, file, kind);
    t.is(await passthrough(), 2, 'both later opens got passthrough');
    // The first mapping goes on working beside them.
    t.is(await loader.ask(`peek 0 ${PART_BYTES + 9}`), `byte ${LARGE[PART_BYTES + 9]}`);
  });

  test(`a shared mapping keeps passthrough out until it is gone (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const holder = await Actor.start(fixture);
    const fd = await holder.open(file);
    t.is(await holder.ask(`map shared ${fd} ${LARGE.length}`), 'map 0');
    t.is(await holder.ask(`close ${fd}`), 'ok');
    t.is(await holder.ask('peek 0 5'), `byte ${LARGE[5]}`);
    await complete(fixture);
    const other = await Actor.start(fixture);
    for (const kind of ['private', 'shared']) await useWholly(t, other, file, kind);
    t.is(await passthrough(), 0);
    t.is(await holder.ask(`peek 0 ${LARGE.length - 1}`), `byte ${LARGE.at(-1)}`);
    t.is(await holder.ask('unmap 0'), 'ok');
    // The kernel tells of the end of a handle in its own time.
    await until('passthrough', async () => {
      await useWholly(t, other, file, 'shared');
      return (await passthrough()) > 0;
    });
  });

  test(`a descriptor that is still open may be mapped shared later (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const holder = await Actor.start(fixture);
    const fd = await holder.open(file);
    t.deepEqual(await holder.pread(fd, 0, 16), LARGE.subarray(0, 16));
    await complete(fixture);
    const other = await Actor.start(fixture);
    const held = await other.open(file);
    t.deepEqual(await other.pread(held, 0, 16), LARGE.subarray(0, 16));
    t.is(await holder.ask(`map shared ${fd} ${LARGE.length}`), 'map 0');
    t.is(await holder.ask(`peek 0 ${LARGE.length - 1}`), `byte ${LARGE.at(-1)}`);
    t.is(await passthrough(), 0);
  });

  test(`a duplicate of a closed descriptor may be mapped shared later (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const holder = await Actor.start(fixture);
    const fd = await holder.open(file);
    const copy = Number((await holder.ask(`dup ${fd}`)).slice(3));
    t.is(await holder.ask(`close ${fd}`), 'ok');
    await complete(fixture);
    const other = await Actor.start(fixture);
    const held = await other.open(file);
    t.is(await holder.ask(`map shared ${copy} ${LARGE.length}`), 'map 0');
    t.is(await holder.ask('peek 0 3'), `byte ${LARGE[3]}`);
    t.deepEqual(await other.pread(held, 0, 16), LARGE.subarray(0, 16));
    t.is(await passthrough(), 0);
  });

  test(`an open that the kernel refused is the last one (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const parent = await Actor.start(fixture);
    const fd = await parent.open(file);
    const child = Number((await parent.ask(`forkmap ${fd} ${LARGE.length}`)).slice(4));
    t.teardown(() => process.kill(child, 'SIGKILL'));
    await until('the child maps', async () => {
      return (await readFile(`/proc/${child}/maps`, 'utf8')).includes('large.so');
    });
    t.is(await parent.ask(`close ${fd}`), 'ok');
    await complete(fixture);
    // Nothing that the parent has shows the child's mapping.
    const other = await Actor.start(fixture);
    const refused = `error ${constants.errno.EIO}`;
    t.is(await other.ask(`open ${file}`), refused);
    // Learnt from a release that comes within a millisecond: on a busy machine not the first one.
    let tries = 0;
    await until('an open that is not refused', async () => {
      tries++;
      return (await other.ask(`open ${file}`)) !== refused;
    });
    for (const kind of ['private', 'shared']) await useWholly(t, other, file, kind);
    t.is(await passthrough(), tries);
  });

  test(`a file that was only read while it arrived gets passthrough afterwards (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const reader = await Actor.start(fixture);
    const fd = await reader.open(file);
    t.deepEqual(await reader.pread(fd, 100, 16), LARGE.subarray(100, 116));
    t.is(await reader.ask(`close ${fd}`), 'ok');
    await complete(fixture);
    await useWholly(t, reader, file, 'shared');
    t.is(await passthrough(), 1);
    // While passthrough is open, every further open joins it.
    const first = await reader.open(file);
    const second = await reader.open(file);
    t.deepEqual(await reader.pread(first, 0, 4), LARGE.subarray(0, 4));
    t.deepEqual(await reader.pread(second, 0, 4), LARGE.subarray(0, 4));
    t.is(await passthrough(), 3);
  });

  test(`a descriptor that a child inherited keeps counting (${below})`, async (t) => {
    const { fixture, file, passthrough } = await world(t, below);
    const parent = await Actor.start(fixture);
    const fd = await parent.open(file);
    const child = Number((await parent.ask('forkhold')).slice(4));
    t.teardown(() => {
      try {
        process.kill(child, 'SIGKILL');
      } catch {
        // The test ended it already.
      }
    });
    await complete(fixture);
    // The child ends and closes its copy: the parent's is still open, and can be mapped.
    process.kill(child, 'SIGKILL');
    const other = await Actor.start(fixture);
    const held = await other.open(file);
    t.is(await parent.ask(`map shared ${fd} ${LARGE.length}`), 'map 0');
    t.is(await parent.ask('peek 0 9'), `byte ${LARGE[9]}`);
    t.deepEqual(await other.pread(held, 0, 4), LARGE.subarray(0, 4));
    t.is(await passthrough(), 0);
  });
}

for (const passthrough of [true, false]) {
  test(`a program runs while it is arriving (${passthrough ? 'passthrough' : 'no passthrough'})`, async (t) => {
    const bash = await readFile('/bin/bash');
    t.true(bash.length > PART_BYTES, 'it has several parts');
    const tree = new Tree();
    tree.file('bin/bash', bash, { mode: 0o755 });
    const fixture = await Fixture.make(t, tree);
    const { points } = await fixture.mount({ passthrough });
    const parts = Array.from({ length: Math.ceil(bash.length / PART_BYTES) }, (_, part) => part);
    await fixture.arriveParts('bin/bash', parts.slice(1));
    // By way of a shell: starting a program blocks this process until the program is loaded.
    const bashes = () =>
      fixture.start('sh', '-c', `exec ${points[0]}/bin/bash -c 'read line; echo "it runs: $line"'`);
    const early = bashes();
    await fixture.untilWaiting(1);
    await fixture.arriveParts('bin/bash', [0]);
    await fixture.completeParts('bin/bash');
    const late = bashes();
    for (const program of [late, early]) {
      program.child.stdin!.end('now\n');
      t.is((await program.end).code, 0, program.err);
      t.is(program.out, 'it runs: now\n');
    }
    t.is((await fixture.stats()).passthroughOpens > 0, passthrough);
  });
}

test('a file whose opener is a thread that has ended gets passthrough as well', async (t) => {
  const { fixture, file, passthrough } = await world(t, 'no overlay');
  const script = `import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def work():
    fd = os.open(sys.argv[1], os.O_RDONLY)
    assert libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0) not in (None, ctypes.c_void_p(-1).value)
    os.close(fd)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print('mapped', flush=True)
sys.stdin.read()`;
  const holder = fixture.start('python3', '-c', script, file);
  await holder.says('mapped');
  await complete(fixture);
  const other = await Actor.start(fixture);
  await useWholly(t, other, file, 'shared');
  t.is(await passthrough(), 1);
});

test('without passthrough, mappings of both kinds work before and after completion', async (t) => {
  const tree = new Tree();
  tree.file('large', LARGE);
  const fixture = await Fixture.make(t, tree);
  const { points } = await fixture.mount({ passthrough: false });
  await fixture.arriveParts('large', [0, 1, 2]);
  const actor = await Actor.start(fixture);
  for (const kind of ['private', 'shared']) await useWholly(t, actor, `${points[0]}/large`, kind);
  await fixture.completeParts('large');
  for (const kind of ['private', 'shared']) await useWholly(t, actor, `${points[0]}/large`, kind);
  t.is((await fixture.stats()).passthroughOpens, 0);
});
