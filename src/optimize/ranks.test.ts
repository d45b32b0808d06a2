// Ranks for an image from its own runs, from those of another version, and from its neighbours.
import test from 'ava';
import fc from 'fast-check';
import { TRACE_PART_BYTES as PART } from '../trace/tracer.ts';
import { Matcher, mapTracer, versionless } from './match.ts';
import { rankImage, ranksVersion, repositoryOf } from './ranks.ts';
import { filesOf, large, runOf } from './testing.ts';

const digestOf = (digit: string) => `sha256:${digit.repeat(64)}`;
const names = (ranks: ReturnType<typeof rankImage>) =>
  ranks.parts.map(
    ({ path, part, source }) => `${source} ${path}${part === undefined ? '' : `#${part}`}`,
  );

test('version numbers in paths', (t) => {
  t.is(versionless('usr/lib/libssl.so.1.1'), 'usr/lib/libssl.so.#');
  t.is(versionless('usr/lib/libssl.so.3'), 'usr/lib/libssl.so.#');
  t.is(versionless('usr/lib/python3.11/os.py'), 'usr/lib/python#/os.py');
  t.is(versionless('plain'), 'plain');
});

test('a file is found by path, then by version, then by content', (t) => {
  const from = filesOf({ 'bin/app': 'A1', 'lib/libx.so.1.2': 'X1', 'opt/tool': 'T', gone: 'G' });
  const to = filesOf({ 'bin/app': 'A2', 'lib/libx.so.1.3': 'X2', 'usr/bin/tool': 'T', extra: 'E' });
  const matcher = new Matcher(from, to);
  const found = (path: string) => {
    const match = matcher.find(path);
    return match && [match.file.path, match.how];
  };
  t.deepEqual(found('bin/app'), ['bin/app', 'path']);
  t.deepEqual(found('lib/libx.so.1.2'), ['lib/libx.so.1.3', 'version']);
  t.deepEqual(found('opt/tool'), ['usr/bin/tool', 'content']);
  t.is(found('gone'), undefined);
  t.is(found('__proto__'), undefined);
  t.deepEqual(new Matcher(undefined, to).find('opt/tool', 'T')!.how, 'content');
  t.is(new Matcher(undefined, to).find('opt/tool'), undefined);
});

test('the nearest version wins, and a file that both images have is no other version', (t) => {
  const from = filesOf({ 'lib/libx.so.3': 'a', 'lib/libx.so.7': 'b' });
  const to = filesOf({ 'lib/libx.so.3': 'a', 'lib/libx.so.9': 'c', 'lib/libx.so.20': 'd' });
  t.is(new Matcher(from, to).find('lib/libx.so.7')!.file.path, 'lib/libx.so.9');
  // Nearer to 4 than 9 is the 3 that both have.
  const older = filesOf({ 'lib/libx.so.3': 'a', 'lib/libx.so.4': 'b' });
  t.is(new Matcher(older, to).find('lib/libx.so.4')!.file.path, 'lib/libx.so.9');
  t.is(new Matcher(undefined, to).find('lib/libx.so.4')!.file.path, 'lib/libx.so.3');
  const long = '9'.repeat(400);
  t.is(new Matcher(from, to).find(`lib/libx.so.${long}`)!.how, 'version');
});

test('a mapped run keeps order and times, and ranges only of files that stay large', (t) => {
  const to = filesOf({ a: 'a', big: ['b', 3 * PART], shrunk: ['s', 10] });
  const run = runOf(['missing', large('big', 1, [2, 0]), large('shrunk', 2, [1]), 'a']);
  const { tracer, counts } = mapTracer(run, undefined, to);
  t.deepEqual(
    tracer.seq.map(({ path, ranges }) => [path, ranges?.length]),
    [
      ['big', 2],
      ['shrunk', undefined],
      ['a', undefined],
    ],
  );
  t.deepEqual(counts, { path: 3, version: 0, content: 0, missing: 1 });
});

test('own runs: files and parts that the image has, each once', (t) => {
  const files = filesOf({ a: 'a', b: 'b', empty: ['e', 0], big: ['B', 2 * PART + 1] });
  const run = runOf(['b', 'directory', 'empty', large('big', 1.5, [2, 7, 0]), 'a'], {
    digest: digestOf('1'),
  });
  const ranks = rankImage([run], { digest: digestOf('1'), image: 'app:1', files });
  t.deepEqual(names(ranks), ['own b', 'own big#2', 'own big#0', 'own a']);
  t.deepEqual(
    ranks.parts.map(({ rank }) => rank),
    [0, 1, 2, 3],
  );
  t.is(ranks.runs, 1);
});

test('a large file that no run saw in ranges is ranked whole, a small one always', (t) => {
  const files = filesOf({ big: ['B', 5 * PART], small: ['s', 100] });
  const run = runOf(['big', large('small', 1, [0])]);
  const ranks = rankImage([run], { digest: digestOf('1'), image: 'app:1', files });
  t.deepEqual(names(ranks), ['own big', 'own small']);
});

test('runs of another version order an image that was never traced', (t) => {
  const old = filesOf({ 'bin/app': 'A1', 'lib/libx.so.1': 'X1', moved: 'M' });
  const files = filesOf({ 'bin/app': 'A2', 'lib/libx.so.2': 'X2', 'new/place': 'M', other: 'O' });
  const runs = [
    runOf(['lib/libx.so.1', 'moved', 'bin/app'], { image: 'host/app:1', digest: digestOf('1') }),
    runOf(['other'], { image: 'host/unrelated:1', digest: digestOf('9') }),
    runOf(['other'], { image: 'host/app:1', digest: digestOf('8'), platform: 'linux/arm64' }),
  ];
  const target = { digest: digestOf('2'), image: 'host/app:2', platform: 'linux/amd64', files };
  const ranks = rankImage(runs, target, (digest) => (digest === digestOf('1') ? old : undefined));
  t.deepEqual(names(ranks), ['version lib/libx.so.2', 'version new/place', 'version bin/app']);
  t.deepEqual(ranks.matched, { path: 1, version: 1, content: 1, missing: 0 });
});

test('the newest 32 runs count, all alike', (t) => {
  const files = filesOf({ a: 'a', b: 'b', c: 'c' });
  const rank = (orders: string[][]) => {
    const runs = orders.map((order, startS) => runOf(order, { startS }));
    return names(rankImage(runs, { digest: digestOf('1'), image: 'app:1', files }));
  };
  t.deepEqual(
    rank([
      ['a', 'b'],
      ['a', 'b'],
      ['b', 'a', 'c'],
    ]),
    ['own a', 'own b', 'own c'],
  );
  const old = Array.from({ length: 60 }, () => ['c', 'b', 'a']);
  const now = Array.from({ length: 32 }, () => ['a', 'b']);
  t.deepEqual(rank([...old, ...now]), ['own a', 'own b']);
});

test('own runs lead, other versions follow', (t) => {
  const files = filesOf({ a: 'a', b: 'b', c: 'c' });
  const runs = [
    runOf(['c', 'a'], { image: 'app:1', digest: digestOf('1') }),
    runOf(['b', 'a'], { image: 'app:2', digest: digestOf('2') }),
  ];
  const ranks = rankImage(runs, { digest: digestOf('2'), image: 'app:2', files });
  t.deepEqual(names(ranks), ['own b', 'own a', 'version c']);
});

test('a group orders both of its images, with what they share', (t) => {
  const web = filesOf({ 'bin/web': 'W', 'lib/c': 'C', 'lib/ssl': 'S', 'etc/passwd': 'P1' });
  const db = filesOf({ 'bin/db': 'D', 'usr/lib/c': 'C', 'usr/lib/ssl': 'S', 'etc/passwd': 'P2' });
  const files = new Map([
    [digestOf('1'), web],
    [digestOf('2'), db],
  ]);
  const runs = [
    runOf(['lib/c', 'bin/web'], { image: 'web:1', digest: digestOf('1'), group: 'shop' }),
    runOf(['etc/passwd', 'usr/lib/ssl', 'usr/lib/c', 'bin/db'], {
      image: 'db:1',
      digest: digestOf('2'),
      group: 'shop',
      startS: 1,
    }),
  ];
  const rank = (image: string, digest: string) =>
    names(rankImage(runs, { digest, image, files: files.get(digest)! }, (of) => files.get(of)));
  t.deepEqual(rank('web:1', digestOf('1')), ['own lib/c', 'own bin/web', 'neighbour lib/ssl']);
  t.deepEqual(rank('db:1', digestOf('2')), [
    'own etc/passwd',
    'own usr/lib/ssl',
    'own usr/lib/c',
    'own bin/db',
  ]);
  for (const run of runs) run.group = 'default';
  t.deepEqual(rank('web:1', digestOf('1')), ['own lib/c', 'own bin/web']);
});

test("an image's references and the versions of an order", (t) => {
  t.is(repositoryOf('localhost:5000/team/app:1.2'), 'localhost:5000/team/app');
  t.is(repositoryOf('localhost:5000/team/app'), 'localhost:5000/team/app');
  t.is(repositoryOf(`app@${digestOf('1')}`), 'app');
  t.is(repositoryOf(`app:1@${digestOf('1')}`), 'app');
  const part = { path: 'a', rank: 0, runs: 1, of: 1, source: 'own' as const };
  t.is(ranksVersion([]), '');
  t.is(ranksVersion([part]), ranksVersion([{ ...part, rank: 5, runs: 7 }]));
  t.not(ranksVersion([part]), ranksVersion([{ ...part, part: 0 }]));
});

test('ranks name only what the image has, each once, whatever the runs say', (t) => {
  const files = filesOf({ a: 'a', 'b/1': 'b', 'b/2': 'c', big: ['d', 3 * PART] });
  const path = fc.constantFrom('a', 'b/1', 'b/2', 'b/3', 'big', 'x', '__proto__');
  const item = fc.tuple(path, fc.option(fc.array(fc.nat(5)))).map(([path, parts]) => {
    const { ranges, ...item } = large(path, 0, parts ?? []);
    return parts === null ? item : { ...item, ranges: ranges! };
  });
  const run = fc
    .tuple(
      fc.array(item),
      fc.constantFrom('app:1', 'app:2', 'db:1'),
      fc.constantFrom('default', 'g'),
    )
    .map(([seq, image, group]) => runOf(seq, { image, group }));
  fc.assert(
    fc.property(fc.array(run, { maxLength: 5 }), (runs) => {
      const { parts } = rankImage(runs, { digest: digestOf('1'), image: 'app:1', files });
      const keys = parts.map(({ path, part }) => `${path}#${part}`);
      t.is(new Set(keys).size, keys.length);
      for (const [rank, { path, part, ...of }] of parts.entries()) {
        t.is(of.rank, rank);
        t.true((part ?? 0) * PART < files.file(path)!.sizeBytes);
      }
    }),
  );
});
