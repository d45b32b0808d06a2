// A server that wants tokens, and a worker with a right one, a wrong one, none, and one that is replaced or taken away
// while an image is on its way.
import { createHash } from 'node:crypto';
import { readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { Background, run, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

/** Of what should take a second or two: shorter than the five minutes that a read may wait. */
const BOUND = { timeoutMs: 120_000, everyMs: 100 };
const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

interface Token {
  token: string;
  line: string;
}

interface World {
  stage: Stage;
  image: SmallImage;
  url: string;
  server: Background;
  /** A new token. */
  make(name: string): Promise<Token>;
  /** Replaces the file in which the server has its tokens; that of the image's owner stays. */
  serverHas(...tokens: Token[]): Promise<void>;
  /** Replaces the file of the worker's token. */
  workerHas(token: Token): Promise<void>;
  /** Resolves when the server takes it no more. */
  isRefused(token: Token): Promise<void>;
}

async function replace(path: string, text: string): Promise<void> {
  await writeFile(`${path}.new`, text, { mode: 0o600 });
  await rename(`${path}.new`, path);
}

async function world(t: ExecutionContext<unknown>, rate?: string): Promise<World> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  const [tokens, worker] = [join(stage.dir, 'tokens'), join(stage.dir, 'token')];
  const make = (name: string, ...more: string[]) => stage.json<Token>(['token', name, ...more]);
  const owner = await make('owner', '--may', 'fetch,change');
  await replace(tokens, `${owner.line}\n`);
  stage.env.FIRSTLIGHT_TOKENS = tokens;
  const { url, process } = await stage.serve(rate === undefined ? {} : { rate });
  await replace(join(stage.dir, 'owner'), owner.token);
  await stage.must(
    ['image', 'add', `rootfs:${image.tar}`, '--name', 'small:1', '--token-file', 'owner'],
    { timeoutMs: 300_000 },
  );
  return {
    ...{ stage, image, url, server: process, make },
    serverHas: (...list) =>
      replace(tokens, [owner, ...list].map(({ line }) => `${line}\n`).join('')),
    workerHas: ({ token }) => replace(worker, `${token}\n`),
    async isRefused({ token }) {
      await replace(join(stage.dir, 'tried'), token);
      await until(
        'the server takes the token no more',
        async () => (await stage.run(['image', 'ls', '--token-file', 'tried'])).code === 10,
        BOUND,
      );
    },
  };
}

test.serial(
  'a wrong token is an error that says so, a right one mounts, what has arrived needs none',
  async (t) => {
    const { stage, image, url, make, serverHas, workerHas } = await world(t);
    const [right, wrong] = [await make('node-1'), await make('node-1')];
    await serverHas(right);
    const directory = await stage.mountPoint();
    const mount = (...more: string[]) =>
      stage.run(['mount', 'small:1', directory, '--rw', 'off', ...more]);
    const none = await mount();
    t.is(none.code, 10, none.stderr);
    t.regex(none.stderr, /the server wants a token for this; give the file .* --token-file/);
    await workerHas(wrong);
    const other = await mount('--token-file', 'token');
    t.is(other.code, 10, other.stderr);
    t.true(
      other.stderr.includes(`${url} does not take the token in ${join(stage.dir, 'token')}; `),
    );
    const missing = await mount('--token-file', 'nowhere');
    t.is(missing.code, 10, missing.stderr);
    t.regex(missing.stderr, /there is no token to show: ENOENT.*\/nowhere'; put it into /);
    t.deepEqual((await stage.status()).mounts, []);
    const doctor = async () => {
      const { stdout } = await stage.run(['doctor', '--json', '--token-file', 'token']);
      const { findings } = JSON.parse(stdout.toString()) as {
        findings: { name: string; level: string; text: string }[];
      };
      return findings.find(({ name }) => name === 'server');
    };
    t.like(await doctor(), { level: 'fail', text: 'the server wants another token' });

    await workerHas(right);
    t.like(await doctor(), { level: 'ok' });
    t.is((await mount('--token-file', 'token', '--wait')).code, 0);
    const read = await run('cat', [join(directory, image.medium)]);
    t.is(sha256(read.stdout), image.files.get(image.medium)!.sha256);

    await serverHas();
    await rm(join(stage.dir, 'token'));
    const large = await run('cat', [join(directory, image.large)]);
    t.is(sha256(large.stdout), image.files.get(image.large)!.sha256);
    const second = await stage.mount('small:1', ['--rw', 'off', '--wait'], 'second');
    t.is((await run('cat', [join(second, image.library)])).code, 0);
    const log = await readFile(join(stage.root, 'daemon.log'), 'utf8');
    for (const { token } of [right, wrong]) t.false(log.includes(token));

    // One that is started with a token shows it for whoever mounts.
    for (const each of [directory, second]) await stage.must(['umount', each]);
    await stage.must(['gc', '--all']);
    await stage.must(['daemon', '--stop']);
    await stage.daemonEnded();
    await serverHas(right);
    await workerHas(right);
    const daemon = stage.start(['daemon', '--token-file', 'token', '--server', url]);
    await until('the daemon runs', async () => (await stage.status()).daemon !== null, BOUND);
    t.is((await mount('--wait')).code, 0);
    t.true((await stage.mountStatus(directory)).bytesDone > 10_000_000, 'it came from the server');
    await stage.must(['daemon', '--stop']);
    t.is((await daemon.ended).code, 0);
  },
);

test.serial(
  'a token is replaced under a transfer, then taken away: no reader hangs, and a new one mends it',
  async (t) => {
    // 20 MB, 20 s: enough for what is done meanwhile.
    const it = await world(t, '8mbit');
    const { stage, image, url, make, serverHas, workerHas, isRefused } = it;
    const [first, second, third] = [await make('a'), await make('a'), await make('a')];
    await serverHas(first);
    await workerHas(first);
    const directory = await stage.mount('small:1', ['--rw', 'off', '--token-file', 'token']);
    const reader = new Background('cat', [join(directory, image.large)], { env: stage.env });

    await workerHas(second);
    await serverHas(second);
    await isRefused(first);
    const { bytesDone } = await stage.mountStatus(directory);
    const goesOn = await until(
      'more comes with the second token',
      async () => {
        const status = await stage.mountStatus(directory);
        return status.bytesDone > bytesDone + 2_000_000 ? status : undefined;
      },
      BOUND,
    );
    t.is(goesOn.transfer.state, 'receiving');
    t.is(goesOn.transfer.error, null);
    t.true(reader.running, 'it still waits');

    await serverHas();
    const { code, stderr } = await until(
      'the reader ends',
      () => (reader.running ? undefined : reader.ended),
      BOUND,
    );
    t.is(code, 1);
    t.regex(stderr, /Input\/output error/);
    const stuck = await stage.mountStatus(directory);
    t.is(stuck.transfer.state, 'retrying');
    t.regex(stuck.transfer.error!, /does not take the token in .*\/token; put one into it/);
    const again = await run('cat', [join(directory, image.large)]);
    t.regex(again.stderr, /Input\/output error/);
    t.true(again.ms < 60_000, 'it does not wait for its bound, which is five minutes');
    const shown = await stage.must(['status', directory]);
    t.regex(shown, /error .*put one into it that the server has/);
    const other = await stage.mountPoint('other');
    const waits = await stage.run(['mount', 'small:1', other, '--rw', 'off', '--wait']);
    t.is(waits.code, 10, waits.stderr);
    const log = await readFile(join(stage.root, 'daemon.log'), 'utf8');
    const told = log.split('\n').filter((line) => line.includes('the server refuses'));
    t.true(told.length >= 1 && told.every((line) => line.includes('"level":50')));

    // The rest need not take as long.
    it.server.child.kill('SIGTERM');
    await it.server.ended;
    await workerHas(third);
    await serverHas(third);
    await stage.serve({ listen: new URL(url).host });
    await until(
      'the image is there',
      async () => {
        return (await stage.mountStatus(directory)).transfer.state === 'complete';
      },
      BOUND,
    );
    const whole = await run('cat', [join(directory, image.large)]);
    t.is(sha256(whole.stdout), image.files.get(image.large)!.sha256);
  },
);
