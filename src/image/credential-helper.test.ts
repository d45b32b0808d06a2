// Logins from credential helpers, with real programs in PATH.
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { readDockerAuth } from './docker-config.ts';

test.serial('the helper that docker would ask is asked, and its answer read', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-helper-'));
  const before = { config: process.env.DOCKER_CONFIG, path: process.env.PATH };
  process.env.DOCKER_CONFIG = directory;
  process.env.PATH = `${directory}:${before.path}`;
  const helper = async (name: string, script: string) => {
    const path = join(directory, `docker-credential-${name}`);
    await writeFile(path, `#!/bin/sh\n${script}\n`);
    await chmod(path, 0o755);
  };
  const answer = (user: string) =>
    `read registry; [ "$1" = get ] && echo "{\\"ServerURL\\":\\"x\\",\\"Username\\":\\"${user}\\",\\"Secret\\":\\"for $registry\\"}"`;
  try {
    await helper('mine', answer('me'));
    await helper('token', answer('<token>'));
    await helper('empty', 'echo "credentials not found in native keychain"; exit 1');
    await helper('broken', 'echo secret-in-output; exit 1');
    await helper('odd', 'echo secret-in-output');
    const config = {
      auths: { 'plain.example': { auth: btoa('u:p') }, 'both.example': { auth: btoa('u:p') } },
      credHelpers: {
        'both.example': 'mine',
        'token.example': 'token',
        'empty.example': 'empty',
        'broken.example': 'broken',
        'odd.example': 'odd',
        'absent.example': 'not-installed',
        'bad.example': '../../bin/sh',
      },
      credsStore: 'mine',
    };
    await writeFile(join(directory, 'config.json'), JSON.stringify(config));
    const mine = (registry: string) => ({ username: 'me', password: `for ${registry}` });
    t.deepEqual(await readDockerAuth('both.example'), mine('both.example'));
    t.deepEqual(await readDockerAuth('plain.example'), { username: 'u', password: 'p' });
    t.deepEqual(await readDockerAuth('other.example:5000'), mine('other.example:5000'));
    t.deepEqual(await readDockerAuth('docker.io'), mine('https://index.docker.io/v1/'));
    t.deepEqual(await readDockerAuth('token.example'), { identityToken: 'for token.example' });
    t.is(await readDockerAuth('empty.example'), undefined);
    t.is(await readDockerAuth('absent.example'), undefined);
    for (const host of ['broken.example', 'odd.example', 'bad.example']) {
      const error = await t.throwsAsync<Error & { kind: string; hint?: string }>(
        readDockerAuth(host),
      );
      t.is(error?.kind, 'usage');
      t.notRegex(`${error?.message} ${error?.hint} ${error?.cause}`, /secret-in-output/);
    }
  } finally {
    if (before.config === undefined) delete process.env.DOCKER_CONFIG;
    else process.env.DOCKER_CONFIG = before.config;
    process.env.PATH = before.path;
    await rm(directory, { recursive: true, force: true });
  }
});
