// FsInstance before the real kernel: overlay above the session, its paths, its errors, its end.
// Each mount lives in a child process; this one looks at it only through other programs.
import { type ChildProcessWithoutNullStreams, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { LayerStore } from '../../src/store/layer-store.ts';
import { mountsOf, readMounts } from '../../src/store/mounts.ts';
import { encode, FaultyServer, makeImage, quietLog, scratch } from '../receive/fixture.ts';

const CHILD = new URL('../receive/fs-child.ts', import.meta.url).pathname;
const IMAGE = makeImage('fs', {
  'etc/motd': Buffer.from('hello\n'),
  'etc/other': Buffer.from('other\n'),
  'bin/tool': Buffer.alloc(3_000_000, 'x'),
});

interface Answer {
  ok?: Record<string, unknown> | null;
  kind?: string;
  line?: string;
}

/** Runs a shell line; its standard output. A line that hangs on a mount is killed. */
async function sh(line: string): Promise<string> {
  const { stdout } = await promisify(execFile)('bash', ['-euc', line], {
    timeout: 180_000,
    killSignal: 'SIGKILL',
  });
  return stdout;
}

/** All mounts below a directory of this test. */
async function mountsIn(directory: string): Promise<string[]> {
  return mountsOf(directory, await readMounts()).map(({ mountPoint }) => mountPoint);
}

class Child {
  readonly process: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  #errors = '';

  constructor(t: ExecutionContext, args: string[]) {
    this.process = spawn(process.execPath, [CHILD, ...args], {
      env: { ...process.env, FIRSTLIGHT_LOG: 'warn' },
    });
    this.process.stderr.on('data', (chunk) => {
      this.#errors += chunk;
    });
    this.#lines = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]();
    t.teardown(async () => {
      if (this.process.exitCode === null && this.process.signalCode === null) {
        this.process.kill('SIGKILL');
        await once(this.process, 'exit');
      }
    });
  }

  async answer(): Promise<Answer> {
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error(`the child ended: ${this.#errors}`);
    return JSON.parse(value) as Answer;
  }

  ask(command: string): Promise<Answer> {
    this.process.stdin.write(`${command}\n`);
    return this.answer();
  }

  async exit(): Promise<number | null> {
    this.process.stdin.end('exit\n');
    const [code] = await once(this.process, 'exit');
    return code as number | null;
  }
}

/** A directory with a root and a mount point in it; unmounted and removed whatever happens. */
async function place(t: ExecutionContext, rootName = 'root') {
  const directory = await scratch(t);
  t.teardown(async () => {
    for (const mountPoint of await mountsIn(directory)) {
      await sh(`umount -l ${JSON.stringify(mountPoint)}`).catch(() => undefined);
    }
  });
  const mnt = join(directory, 'mnt');
  await mkdir(mnt);
  const server = await FaultyServer.start(t);
  server.serve(IMAGE, await encode(IMAGE));
  return { directory, root: join(directory, rootName), mnt, url: server.url };
}

test.serial(
  'overlay: the image below, what is written above, and nothing left after teardown',
  async (t) => {
    const { directory, root, mnt, url } = await place(t);
    const child = new Child(t, [root, url, mnt, 'overlay']);
    t.deepEqual(await child.answer(), { ok: null });
    t.is(await sh(`cat ${mnt}/etc/motd`), 'hello\n');
    t.is(await sh(`stat -c '%a %u %g %Y' ${mnt}`), '755 0 0 0\n');
    await sh(
      `echo changed > ${mnt}/etc/motd; echo new > ${mnt}/new; rm ${mnt}/etc/other; chmod 700 ${mnt}/bin/tool`,
    );
    t.is(await sh(`cat ${mnt}/etc/motd ${mnt}/new; ls ${mnt}/etc`), 'changed\nnew\nmotd\n');
    t.is(await sh(`head -c 100 ${mnt}/bin/tool | wc -c; stat -c %a ${mnt}/bin/tool`), '100\n700\n');
    const status = (await child.ask('status')).ok!;
    t.is(status.rw, 'overlay');
    t.is(status.digest, IMAGE.digest);
    t.is(status.optimizeGroup, 'group');
    t.true((status.stats as { lookups: number }).lookups > 0);
    t.deepEqual(await child.ask('teardown'), { ok: [null, null] });
    t.deepEqual(await mountsIn(directory), []);
    t.deepEqual(await readdir(join(root, 'snapshots')), []);
    t.deepEqual(await child.ask('teardown'), { ok: [null, null] });
    t.is(await child.exit(), 0);
    // The store still has what the image brought, unchanged.
    for (const [hex, data] of IMAGE.contents) {
      t.true((await readFile(join(root, 'content', hex.slice(0, 2), hex.slice(2)))).equals(data));
    }
  },
);

test.serial(
  'overlay: commas, colons, blanks, backslashes and umlauts in the path of the root',
  async (t) => {
    const { directory, root, mnt, url } = await place(t, 'a,b:c d\\e "ü=1');
    const child = new Child(t, [root, url, mnt, 'overlay']);
    t.deepEqual(await child.answer(), { ok: null });
    await sh(`echo x > ${mnt}/etc/motd`);
    t.is(await sh(`cat ${mnt}/etc/motd`), 'x\n');
    t.deepEqual(await child.ask('teardown'), { ok: [null, null] });
    t.is(await child.exit(), 0);
    t.deepEqual(await mountsIn(directory), []);
  },
);

test.serial('off: the tree is read-only', async (t) => {
  const { directory, root, mnt, url } = await place(t);
  const child = new Child(t, [root, url, mnt, 'off']);
  t.deepEqual(await child.answer(), { ok: null });
  t.is(await sh(`cat ${mnt}/etc/other`), 'other\n');
  await t.throwsAsync(sh(`echo x > ${mnt}/etc/motd`), { message: /Read-only file system/ });
  t.deepEqual(await child.ask('teardown'), { ok: [null, null] });
  t.is(await child.exit(), 0);
  t.deepEqual(await mountsIn(directory), []);
  t.deepEqual(await readdir(join(root, 'snapshots')), []);
});

test.serial('a mount in use says so, stays whole, and can be detached', async (t) => {
  const { directory, root, mnt, url } = await place(t);
  const child = new Child(t, [root, url, mnt, 'overlay']);
  await child.answer();
  const user = spawn('sleep', ['3600'], { cwd: join(mnt, 'etc'), stdio: 'ignore' });
  t.teardown(() => user.kill('SIGKILL'));
  await once(user, 'spawn');
  const busy = await child.ask('teardown');
  t.is(busy.kind, 'busy');
  t.regex(busy.line!, /is in use; end the programs that use it/);
  t.is(await sh(`cat ${mnt}/etc/motd`), 'hello\n');
  t.deepEqual(await child.ask('detach'), { ok: null });
  t.deepEqual(await mountsIn(directory), []);
  user.kill('SIGKILL');
  await once(user, 'exit');
  t.is(await child.exit(), 0);
});

test.serial('a mount that cannot be made leaves nothing', async (t) => {
  const { directory, root, mnt, url } = await place(t);
  const child = new Child(t, [root, url, join(mnt, 'missing'), 'overlay']);
  const answer = await child.answer();
  t.is(answer.kind, 'not-found');
  t.deepEqual(await mountsIn(directory), []);
  t.deepEqual(await readdir(join(root, 'snapshots')), []);
  t.is(await child.exit(), 0);
});

test.serial(
  'mounts of a killed daemon are detached by the next one, and what was written is kept',
  async (t) => {
    const { directory, root, mnt, url } = await place(t);
    const child = new Child(t, [root, url, mnt, 'overlay']);
    await child.answer();
    await sh(`echo kept > ${mnt}/new`);
    child.process.kill('SIGKILL');
    await once(child.process, 'exit');
    t.is((await mountsIn(directory)).length, 2);
    const { log } = quietLog();
    const store = await LayerStore.open(root, { log });
    t.deepEqual(await mountsIn(directory), []);
    t.is(await readFile(join(root, 'snapshots/snap-1/upper/new'), 'utf8'), 'kept\n');
    await store.close();
    t.true(existsSync(mnt));
  },
);
