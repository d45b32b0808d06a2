// deploy/install-node.sh against a scratch root directory: nothing that is installed is written to again, what
// a process runs stays, and the link to the current version is always there. systemctl is played by a script that
// writes down what it is asked; no machine of these tests has a systemd to start services by.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  access,
  chmod,
  copyFile,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { run } from '../lib/proc.ts';

const DEPLOY = resolve(import.meta.dirname, '../../deploy');
const SCRIPT = join(DEPLOY, 'install-node.sh');

interface World {
  /** The machine's root directory. */
  host: string;
  /** Where versions lie. */
  versions: string;
  /** A tree to install: its "Node.js" is sleep(1), a program that can be running. */
  source(name: string): Promise<string>;
  /** Runs the script; lines before the program's own arguments are shell. */
  install(source: string, options?: Options): Promise<{ code: number | null; said: string }>;
  current(): Promise<string>;
  /** What systemctl was asked, since the last time. */
  asked(): Promise<string[]>;
}

interface Options {
  args?: string[];
  /** Shell before the script is run. */
  before?: string;
  env?: Record<string, string>;
}

async function open(t: ExecutionContext): Promise<World> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-install-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  const host = join(dir, 'host');
  const systemctl = join(dir, 'on-host');
  await mkdir(join(host, 'etc/systemd/system'), { recursive: true });
  await writeFile(
    systemctl,
    `#!/bin/sh\necho "$*" >>${dir}/asked\n! grep -qxF "$*" ${dir}/fails 2>/dev/null\n`,
  );
  await chmod(systemctl, 0o755);
  const config = join(dir, 'config.toml');
  await writeFile(config, 'server = "http://delta.example.com:7070"\n');
  return {
    host,
    versions: join(host, 'opt/firstlight/versions'),
    async source(name) {
      const root = join(dir, `source-${name}`);
      await mkdir(join(root, 'bin'), { recursive: true });
      await mkdir(join(root, 'node_modules/.bin'), { recursive: true });
      await writeFile(join(root, 'package.json'), '{\n  "version": "0.1.0"\n}\n');
      // Of this test alone: its versions must not have the names of another one's, which may be running.
      const program = `#!/bin/sh\necho ${dir} ${name}\n`;
      await writeFile(join(root, 'bin/firstlight'), program, { mode: 0o755 });
      await copyFile('/bin/sleep', join(root, 'node_modules/.bin/node'));
      await symlink('../bin/firstlight', join(root, 'node_modules/link'));
      await cp(DEPLOY, join(root, 'deploy'), { recursive: true });
      return root;
    },
    async install(source, { args = ['install', config], before = '', env = {} } = {}) {
      const words = ['-c', `${before}\nexec "$@"`, 'sh', SCRIPT, ...args];
      const settings = { HOST_ROOT: host, SOURCE: source, HOST_RUN: systemctl, ...env };
      const ended = await run('sh', words, { env: { ...process.env, ...settings } });
      return { code: ended.code, said: ended.stdout.toString('utf8') + ended.stderr };
    },
    current: () => readlink(join(host, 'opt/firstlight/current')),
    async asked() {
      const text = await readFile(join(dir, 'asked'), 'utf8').catch(() => '');
      await rm(join(dir, 'asked'), { force: true });
      return text.split('\n').filter(Boolean);
    },
  };
}

/** Every file below a directory with what changes when somebody writes to it. */
async function fingerprint(root: string): Promise<string[]> {
  const names = await readdir(root, { recursive: true });
  const lines = names.map(async (name) => {
    const { ino, size, mtimeMs, ctimeMs, mode } = await stat(join(root, name));
    return `${name} ${ino} ${size} ${mtimeMs} ${ctimeMs} ${mode}`;
  });
  return (await Promise.all(lines)).sort();
}

test('an upgrade beside a process that runs the old version: nothing is overwritten, and it stays until it ends', async (t) => {
  const { host, versions, source, install, current, asked } = await open(t);
  const [one, two, three] = [await source('one'), await source('two'), await source('three')];
  const first = await install(one);
  t.is(first.code, 0, first.said);
  const old = await current();
  t.regex(old, /^versions\/0\.1\.0-[0-9a-f]{16}$/);
  t.deepEqual(await asked(), [
    'systemctl daemon-reload',
    'systemctl enable --quiet firstlight.service',
    'systemctl restart firstlight.service',
  ]);
  const unit = join(host, 'etc/systemd/system/firstlight.service');
  const text = await readFile(unit, 'utf8');
  t.regex(text, /^ExecStart=\/opt\/firstlight\/current\/bin\/firstlight daemon --config \S+$/m);
  t.regex(text, /^KillMode=process$/m);
  t.regex(await readFile(join(host, 'etc/firstlight/config.toml'), 'utf8'), /delta\.example/);

  // As the process that keeps the mounts of containers: by the version's real path.
  const program = join(host, 'opt/firstlight', old, 'node_modules/.bin/node');
  const keeper = spawn(program, ['1000'], { stdio: 'ignore' });
  t.teardown(() => keeper.kill('SIGKILL'));
  await once(keeper, 'spawn');
  const before = await fingerprint(join(host, 'opt/firstlight', old));
  // Somebody starts the current version all the time.
  let done = false;
  let looks = 0;
  const watching = (async () => {
    while (!done) {
      await access(join(host, 'opt/firstlight/current/bin/firstlight'));
      looks++;
    }
  })();
  for (const each of [two, three]) {
    const ended = await install(each);
    t.is(ended.code, 0, ended.said);
  }
  done = true;
  await watching;
  t.true(looks > 10);
  t.not(await current(), old);
  t.deepEqual(await fingerprint(join(host, 'opt/firstlight', old)), before);
  t.is(await readlink(`/proc/${keeper.pid}/exe`), program);
  t.is(keeper.exitCode, null);
  t.is((await readdir(versions)).length, 3);

  keeper.kill('SIGKILL');
  await once(keeper, 'exit');
  const again = await install(three);
  t.regex(again.said, /version 0\.1\.0-\w+ removed/);
  const kept = await readdir(versions);
  t.is(kept.length, 2, 'the current one and the one before it');
  t.false(kept.includes(old.replace('versions/', '')));
});

test('the same again changes nothing, and restarts nothing', async (t) => {
  const { host, source, install, asked } = await open(t);
  const tree = await source('one');
  await install(tree);
  await asked();
  const before = await fingerprint(host);
  const ended = await install(tree);
  t.is(ended.code, 0, ended.said);
  // The lock's directory alone has been written to.
  const changed = (await fingerprint(host)).filter((line) => !before.includes(line));
  t.deepEqual(
    changed.map((line) => line.split(' ')[0]),
    ['opt/firstlight'],
  );
  t.true((await asked()).includes('systemctl start firstlight.service'));
});

test('a token is put there for root alone, and replaced without a restart; without one nothing happens', async (t) => {
  const { host, source, install, asked } = await open(t);
  const tree = await source('one');
  const config = join(tree, '../config.toml');
  const token = join(tree, '../token');
  const args = ['install', config, token];
  const there = join(host, 'etc/firstlight/token');
  t.is((await install(tree, { args })).code, 0, 'there is no such file');
  await t.throwsAsync(access(there), { code: 'ENOENT' });
  for (const text of ['first-token\n', 'second-token\n']) {
    await asked();
    await writeFile(token, text);
    const ended = await install(tree, { args, before: 'umask 0' });
    t.is(ended.code, 0, ended.said);
    t.false(ended.said.includes(text.trim()));
    t.is(await readFile(there, 'utf8'), text);
    t.is((await stat(there)).mode & 0o777, 0o600);
    t.true((await asked()).includes('systemctl start firstlight.service'));
  }
  await chmod(there, 0o644);
  t.is((await install(tree, { args })).code, 0);
  t.is((await stat(there)).mode & 0o777, 0o600, 'that it is the same already is no reason');
  await rm(token);
  t.is((await install(tree, { args })).code, 0);
  t.is(await readFile(there, 'utf8'), 'second-token\n', 'one that was put there by hand stays');
});

test('equal versions of different contents are two; a change of mode is one, too', async (t) => {
  const { versions, source, install } = await open(t);
  const tree = await source('one');
  await install(tree);
  await writeFile(join(tree, 'bin/firstlight'), '#!/bin/sh\necho changed\n');
  await install(tree);
  t.is((await readdir(versions)).length, 2);
  await chmod(join(tree, 'package.json'), 0o600);
  await install(tree);
  t.is((await readdir(versions)).length, 2, 'two are kept');
  t.regex((await install(tree)).said, /is installed and runs/);
});

test('an install that breaks off leaves the old version, and the next one cleans up', async (t) => {
  const { host, versions, source, install, current } = await open(t);
  await install(await source('one'));
  const old = await current();
  const big = await source('two');
  await writeFile(join(big, 'big'), Buffer.alloc(4 << 20));
  // A bound on file sizes stands for a full disk.
  const broken = await install(big, { before: 'ulimit -f 1024' });
  t.not(broken.code, 0);
  t.is(await current(), old);
  t.true((await readdir(versions)).some((name) => name.startsWith('.incoming.')));
  const whole = await install(big);
  t.is(whole.code, 0, whole.said);
  t.not(await current(), old);
  t.is((await stat(join(host, 'opt/firstlight/current/big'))).size, 4 << 20);
  t.deepEqual(
    (await readdir(versions)).filter((name) => name.startsWith('.')),
    [],
  );
});

test('a version that does not start is taken back', async (t) => {
  const { host, source, install, current, asked } = await open(t);
  await install(await source('one'));
  const old = await current();
  await asked();
  await writeFile(join(host, '../fails'), 'systemctl restart firstlight.service\n');
  const failed = await install(await source('two'));
  t.is(failed.code, 1);
  t.regex(failed.said, /does not start .*current is 0\.1\.0-\w+ again/);
  t.is(await current(), old);
  t.is((await asked()).filter((line) => line.includes('restart')).length, 2);
});

test('removal waits until no container stands on a mount; configuration and store stay', async (t) => {
  const { host, source, install, asked } = await open(t);
  await install(await source('one'));
  await asked();
  const proc = join(host, '../proc');
  await mkdir(join(proc, '1'), { recursive: true });
  const mounted = '99 1 0:50 / /var/lib/firstlight/x rw - fuse.firstlight firstlight rw\n';
  const line = '29 1 254:0 / / rw - ext4 /dev/root rw\n';
  await writeFile(join(proc, '1/mountinfo'), line + mounted);
  const options = { args: ['uninstall'], env: { HOST_PROC: proc } };
  const refused = await install('', options);
  t.is(refused.code, 1);
  t.regex(refused.said, /containers stand on 1 mounted images: drain/);
  t.deepEqual(await asked(), [
    'systemctl stop firstlight.service',
    'systemctl start firstlight.service',
  ]);
  await access(join(host, 'opt/firstlight/current/bin/firstlight'));
  await writeFile(join(proc, '1/mountinfo'), line);
  const removed = await install('', options);
  t.is(removed.code, 0, removed.said);
  t.deepEqual(await asked(), [
    'systemctl stop firstlight.service',
    'systemctl disable --quiet firstlight.service',
    'systemctl daemon-reload',
  ]);
  const left = (await readdir(host, { recursive: true })).filter((name) => !/^etc/.test(name));
  t.deepEqual(left, ['opt']);
  t.deepEqual(await readdir(join(host, 'etc/firstlight')), ['config.toml']);
  t.notRegex(removed.said, /token/);
  await writeFile(join(host, 'etc/firstlight/token'), 's3cret-token\n');
  const again = await install('', options);
  t.is(again.code, 0, 'a second time does no harm');
  t.regex(again.said, /so is the token \(.*\/etc\/firstlight\/token\): remove it/);
});

test('without a root directory, a source or a command it does nothing', async (t) => {
  const { host, source, install } = await open(t);
  const tree = await source('one');
  t.not((await install(tree, { env: { HOST_ROOT: '' } })).code, 0);
  t.regex((await install(join(host, 'none'))).said, /has no bin\/firstlight/);
  t.regex((await install(tree, { args: [] })).said, /usage/);
  t.deepEqual(await readdir(host), ['etc']);
});
