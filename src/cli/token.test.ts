// `firstlight token`, and commands at a server that wants tokens or stands behind TLS: run as a user runs them.
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { makeCertificates, startTlsProxy } from '../../test/receive/tls-proxy.ts';
import { makeTar, serve } from '../serve/testkit.ts';
import { traceOf } from '../serve/testkit-traces.ts';
import { parseTokens } from '../serve/token.ts';

const PROGRAM = new URL('../../bin/firstlight.js', import.meta.url).pathname;

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

async function world(t: ExecutionContext) {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-token-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  const env: NodeJS.ProcessEnv = { PATH: process.env.PATH, HOME: dir };
  const run = (...args: string[]) =>
    new Promise<Ended>((resolve, reject) => {
      const child = spawn(process.execPath, [PROGRAM, ...args, '--root', join(dir, 'root')], {
        cwd: dir,
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const ended: Ended = { code: null, stdout: '', stderr: '' };
      child.stdout.on('data', (chunk) => {
        ended.stdout += chunk;
      });
      child.stderr.on('data', (chunk) => {
        ended.stderr += chunk;
      });
      child.on('error', reject);
      child.on('close', (code) => resolve({ ...ended, code }));
    });
  return { dir, env, run };
}

test('token prints a new token and the line for the server', async (t) => {
  const { run } = await world(t);
  const { code, stdout } = await run('token', 'node-7');
  t.is(code, 0);
  const [token = '', line = '', ...rest] = stdout.split('\n');
  t.deepEqual(rest, ['']);
  const entry = parseTokens(line, 'F').find(token);
  t.is(entry?.name, 'node-7');
  t.deepEqual([...entry!.scopes], ['fetch', 'report']);
  const made = await run('token', 'ci', '--may', 'change,fetch', '--json');
  const json = JSON.parse(made.stdout) as { token: string; line: string };
  t.deepEqual([...parseTokens(json.line, 'F').find(json.token)!.scopes], ['change', 'fetch']);
  t.is((await run('token', 'ci', '--may', 'all')).code, 2);
  t.is((await run('token', 'two words')).code, 2);
  t.is((await run('token')).code, 2);
});

test('with --tokens every command that asks the server needs one, for what it does', async (t) => {
  const { dir, env, run } = await world(t);
  const lines: string[] = [];
  for (const [name, ...may] of [['worker'], ['admin', '--may', 'fetch,report,change']]) {
    const { stdout } = await run('token', name!, ...may);
    const [token = '', line = ''] = stdout.split('\n');
    await writeFile(join(dir, name!), `${token}\n`);
    lines.push(line);
  }
  const wrong = (await run('token', 'wrong')).stdout.split('\n')[0]!;
  await writeFile(join(dir, 'wrong'), wrong);
  const tokensFile = join(dir, 'tokens');
  await writeFile(tokensFile, lines.join('\n'), { mode: 0o600 });
  env.FIRSTLIGHT_SERVER = (await serve(t, { tokensFile })).url;
  await writeFile(join(dir, 'app.tar'), await makeTar({ a: 'a', z: 'z' }));
  await writeFile(join(dir, 'run.json'), traceOf('app:1', ['z']));
  for (const [by, ...command] of [
    ['admin', 'image', 'add', 'rootfs:app.tar', '--name', 'app:1', '--platform', 'linux/amd64'],
    ['worker', 'image', 'ls'],
    ['worker', 'image', 'inspect', 'app:1'],
    ['worker', 'trace', 'report', 'run.json', '--wait'],
    ['worker', 'trace', 'ls', '--reported'],
    ['worker', 'optimize', 'simulate', 'run.json'],
    ['admin', 'image', 'rm', 'app:1'],
  ] as const) {
    const what = command.join(' ');
    const none = await run(...command);
    t.is(none.code, 10, `${what}: ${none.stderr}`);
    t.regex(none.stderr, /the server wants a token for this; .*--token-file/);
    if (by === 'admin') {
      const other = await run(...command, '--token-file', 'wrong');
      t.is(other.code, 10, `${what}: ${other.stderr}`);
      t.false(`${other.stdout}${other.stderr}`.includes(wrong));
      const scope = await run(...command, '--token-file', 'worker');
      t.is(scope.code, 5, `${what}: ${scope.stderr}`);
      t.regex(scope.stderr, /the token of worker is not for "change"; /);
    }
    env.FIRSTLIGHT_TOKEN_FILE = by;
    const right = await run(...command);
    t.is(right.code, 0, `${what}: ${right.stderr}`);
    delete env.FIRSTLIGHT_TOKEN_FILE;
  }
});

test('commands speak to a server behind TLS whose authority they are told', async (t) => {
  const { dir, env, run } = await world(t);
  const certificates = await makeCertificates(dir);
  const { url } = await serve(t);
  const list = async (server: string, more: NodeJS.ProcessEnv = {}) => {
    Object.assign(env, { NODE_EXTRA_CA_CERTS: '', SSL_CERT_FILE: '', ...more });
    return run('image', 'ls', '--server', server);
  };
  const proxy = (await startTlsProxy(t, url, certificates)).url;
  const stranger = await list(proxy);
  t.is(stranger.code, 4, stranger.stderr);
  t.regex(stranger.stderr, /cannot be reached: .*; name the authority .* NODE_EXTRA_CA_CERTS/);
  for (const name of ['NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE']) {
    const known = await list(proxy, { [name]: certificates.authority });
    t.is(known.code, 0, `${name}: ${known.stderr}`);
  }
  const plain = await list(url.replace('http:', 'https:'));
  t.is(plain.code, 4, plain.stderr);
  t.regex(plain.stderr, /check whether its URL begins with http: or https:/);
});
