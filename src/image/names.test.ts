// References, sources, platforms, digests, docker's config.json.
import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { DigestCheck, parseDigest, sha256Digest } from './digest.ts';
import { dockerHelper, readDockerAuth } from './docker-config.ts';
import { formatPlatform, parsePlatform, platformDistance } from './platform.ts';
import { formatReference, parseReference, parseSource } from './reference.ts';

const HEX = 'a'.repeat(64);

test('references by docker rules', (t) => {
  const cases: Record<string, string> = {
    redis: 'docker.io/library/redis:latest',
    'redis:7.2-alpine': 'docker.io/library/redis:7.2-alpine',
    'bitnami/redis': 'docker.io/bitnami/redis:latest',
    'docker.io/redis': 'docker.io/library/redis:latest',
    'index.docker.io/library/redis': 'docker.io/library/redis:latest',
    'localhost/a': 'localhost/a:latest',
    'localhost:5000/a/b/c:1': 'localhost:5000/a/b/c:1',
    '127.0.0.1:5000/a': '127.0.0.1:5000/a:latest',
    '[::1]:5000/a:x': '[::1]:5000/a:x',
    'ghcr.io/o/n': 'ghcr.io/o/n:latest',
    [`ghcr.io/o/n@sha256:${HEX}`]: `ghcr.io/o/n@sha256:${HEX}`,
    [`n:1@sha256:${HEX}`]: `docker.io/library/n:1@sha256:${HEX}`,
    'a__b/c-d.e': 'docker.io/a__b/c-d.e:latest',
  };
  for (const [text, full] of Object.entries(cases)) {
    t.is(formatReference(parseReference(text)), full, text);
    t.is(formatReference(parseReference(full)), full);
  }
  for (const bad of [
    '',
    'Redis',
    'a//b',
    '/a',
    'a:',
    'a:-x',
    'a@sha256:12',
    'a b',
    '../a',
    'h.io/',
    'h:x/a',
    'a/..',
    'a@',
    `a:${'t'.repeat(129)}`,
    'a?b',
    'a%2e',
  ]) {
    const error = t.throws(() => parseReference(bad), { instanceOf: FirstlightError }, bad);
    t.is(error?.kind, 'usage', bad);
  }
});

test('sources by skopeo names', (t) => {
  t.deepEqual(parseSource('docker://localhost:5000/a:1'), {
    kind: 'registry',
    reference: { registry: 'localhost:5000', repository: 'a', tag: '1' },
  });
  t.deepEqual(parseSource('oci:/d/e:1.2'), { kind: 'oci', directory: '/d/e', tag: '1.2' });
  t.deepEqual(parseSource('oci:d'), { kind: 'oci', directory: 'd', tag: undefined });
  t.deepEqual(parseSource('docker-archive:x.tar:h:5000/n:t'), {
    kind: 'docker-archive',
    file: 'x.tar',
    tag: 'h:5000/n:t',
  });
  t.deepEqual(parseSource('rootfs:a:b.tar'), { kind: 'rootfs', file: 'a:b.tar' });
  for (const bad of ['redis', 'docker:redis', 'oci:', 'oci:d:', 'rootfs:', 'dir:x', '']) {
    t.is(t.throws(() => parseSource(bad), { instanceOf: FirstlightError }, bad)?.kind, 'usage');
  }
});

test('platforms in normal form, and which serves which', (t) => {
  const normal: Record<string, string> = {
    'linux/amd64': 'linux/amd64',
    amd64: 'linux/amd64',
    'Linux/x86_64': 'linux/amd64',
    'linux/amd64/v1': 'linux/amd64',
    'linux/aarch64/8': 'linux/arm64',
    'linux/arm': 'linux/arm/v7',
    'linux/armhf': 'linux/arm/v7',
    'linux/arm/6': 'linux/arm/v6',
  };
  for (const [text, wanted] of Object.entries(normal)) {
    t.is(formatPlatform(parsePlatform(text)), wanted);
  }
  for (const bad of ['', 'a/b/c/d', 'linux/', 'linux/am d64']) {
    t.throws(() => parsePlatform(bad), { instanceOf: FirstlightError }, bad);
  }
  const distance = (wanted: string, offered: string) =>
    platformDistance(parsePlatform(wanted), parsePlatform(offered));
  t.is(distance('linux/arm/v7', 'linux/arm/v7'), 0);
  t.true(distance('linux/arm/v7', 'linux/arm/v6')! < distance('linux/arm/v7', 'linux/arm/v5')!);
  t.is(distance('linux/arm/v6', 'linux/arm/v7'), undefined);
  t.is(distance('linux/amd64', 'linux/amd64/v3'), undefined);
  t.true(distance('linux/amd64/v3', 'linux/amd64')! > 0);
  t.true(distance('linux/arm64/v9', 'linux/arm64')! > 0);
  t.is(distance('linux/amd64', 'windows/amd64'), undefined);
});

test('digests are safe as file names', (t) => {
  t.deepEqual(parseDigest(`sha256:${HEX}`, 'x'), { algorithm: 'sha256', hex: HEX });
  t.is(parseDigest(`sha512:${HEX}${HEX}`, 'x').algorithm, 'sha512');
  for (const bad of [
    '',
    HEX,
    `sha256:${HEX}a`,
    `sha256:${HEX.toUpperCase()}`,
    'sha256:../x',
    `md5:${'a'.repeat(32)}`,
    `sha512:${HEX}`,
  ]) {
    t.throws(() => parseDigest(bad, 'x'), { instanceOf: FirstlightError }, bad);
  }
});

test('a stream is checked for length and digest while it is read', async (t) => {
  const bytes = Buffer.from('some bytes of a blob');
  const read = async (data: Buffer, digest: string, length: number) => {
    const check = Readable.from([data]).compose(new DigestCheck(digest, length, 'the blob'));
    return (await buffer(check as Readable)).toString();
  };
  const sha512 = `sha512:${createHash('sha512').update(bytes).digest('hex')}`;
  for (const digest of [sha256Digest(bytes), sha512]) {
    t.is(await read(bytes, digest, bytes.length), bytes.toString());
    t.is(await read(bytes, digest, -1), bytes.toString());
    const other = Buffer.from(bytes);
    other[3]! ^= 1;
    await t.throwsAsync(read(other, digest, bytes.length), { message: /^the blob: the digest is/ });
    await t.throwsAsync(read(bytes, digest, 5), { message: /longer than its 5 bytes/ });
    await t.throwsAsync(read(bytes, digest, 50), { message: /ends after 20 of 50 bytes/ });
  }
});

test.serial('logins of docker config.json', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-config-'));
  const before = process.env.DOCKER_CONFIG;
  process.env.DOCKER_CONFIG = directory;
  const write = (json: unknown) =>
    writeFile(
      join(directory, 'config.json'),
      typeof json === 'string' ? json : JSON.stringify(json),
    );
  try {
    t.is(await readDockerAuth('docker.io'), undefined);
    await write({
      auths: {
        'https://index.docker.io/v1/': { auth: btoa('hub:p:w') },
        'http://plain.example:5000': { username: 'u', password: 'p' },
        'id.example': { auth: btoa('<token>:'), identitytoken: 'idt' },
        'helped.example': {},
      },
      credHelpers: { 'helped.example': 'pass' },
      credsStore: 'secretservice',
    });
    t.deepEqual(await readDockerAuth('docker.io'), { username: 'hub', password: 'p:w' });
    t.deepEqual(await readDockerAuth('plain.example:5000'), { username: 'u', password: 'p' });
    t.is(await readDockerAuth('plain.example'), undefined);
    t.is((await readDockerAuth('id.example'))?.identityToken, 'idt');
    t.is(await readDockerAuth('helped.example'), undefined);
    t.is(await dockerHelper('helped.example'), 'pass');
    t.is(await dockerHelper('other.example'), 'secretservice');
    for (const bad of [
      '{',
      '{"auths":[1]}',
      { auths: { 'x.example': { auth: btoa('nocolon') } } },
    ]) {
      await write(bad);
      const error = await t.throwsAsync(readDockerAuth('x.example'), {
        instanceOf: FirstlightError,
      });
      t.is(error?.kind, 'usage');
      t.regex(error!.message, /config\.json/);
    }
  } finally {
    if (before === undefined) delete process.env.DOCKER_CONFIG;
    else process.env.DOCKER_CONFIG = before;
    await rm(directory, { recursive: true, force: true });
  }
});
