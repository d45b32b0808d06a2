import test from 'ava';
import { isDigest, normalizeName, parseCatalogRef } from './names.ts';

const digest = `sha256:${'ab'.repeat(32)}`;

test('names get their normal form', (t) => {
  for (const [given, normal] of [
    ['redis', 'redis:latest'],
    ['redis:7.2', 'redis:7.2'],
    ['library/redis', 'redis:latest'],
    ['docker.io/redis', 'redis:latest'],
    ['docker.io/library/redis:7', 'redis:7'],
    ['index.docker.io/library/redis:7', 'redis:7'],
    ['docker.io/bitnami/redis', 'bitnami/redis:latest'],
    ['localhost:5000/library/redis', 'localhost:5000/library/redis:latest'],
    ['localhost/x', 'localhost/x:latest'],
    ['[::1]:5000/a/b/c:T_1', '[::1]:5000/a/b/c:T_1'],
    ['quay.example/a__b/c--d', 'quay.example/a__b/c--d:latest'],
  ] as const) {
    t.is(normalizeName(given), normal, given);
    t.is(normalizeName(normal), normal, 'the normal form is its own');
  }
});

test('what docker refuses is refused', (t) => {
  for (const bad of [
    '',
    ':tag',
    'redis:',
    'Redis',
    'a/Redis',
    'a//b',
    '/a',
    'a/',
    '../etc',
    'a/../b',
    '.',
    'a b',
    'a\nb',
    'a\0b',
    'redis:a/b:c d',
    `redis:${'x'.repeat(129)}`,
    'x'.repeat(256),
    '-a',
    'a_-b',
    'host.name:port/a',
    'redis@sha256:abc',
    `@${digest}`,
  ]) {
    t.throws(() => parseCatalogRef(bad), { name: 'FirstlightError', message: /is not/ }, bad);
  }
});

test('a name to be given has no digest', (t) => {
  t.throws(() => normalizeName(`redis@${digest}`), { message: /ends in a digest/ });
});

test('a digest names an image alone or after a name', (t) => {
  t.deepEqual(parseCatalogRef(digest), { by: 'digest', digest });
  t.deepEqual(parseCatalogRef(`redis:7@${digest}`), { by: 'digest', digest });
  t.deepEqual(parseCatalogRef('redis'), { by: 'name', name: 'redis:latest' });
  t.false(isDigest(digest.toUpperCase()));
  t.false(isDigest(`${digest}0`));
});
