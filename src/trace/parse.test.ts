// Trace files from outside: ours and Starlight's are read, hostile ones are refused with the field.
import test from 'ava';
import fc from 'fast-check';
import { FirstlightError } from '../errors/errors.ts';
import { formatTracer } from './format.ts';
import { checkGroup, pathFault, pathKeys, pathOfKeys } from './names.ts';
import { parseTracer } from './parse.ts';
import { formatTime, parseTime } from './time.ts';
import { firstSights, imageKey, TRACE_NS_MAX, type Tracer } from './tracer.ts';

const parse = (value: unknown) => {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return parseTracer(Buffer.from(text), 'file');
};

const good = {
  group: 'default',
  image: 'redis:7',
  start: '2024-02-29T12:00:00.5+02:00',
  end: '0001-01-01T00:00:00Z',
  seq: [{ f: 'usr/bin/redis', s: 1, a: 10, w: 5 }],
};

test("Starlight's files are read", (t) => {
  t.deepEqual(parse(good), {
    group: 'default',
    image: 'redis:7',
    startNs: BigInt(Date.UTC(2024, 1, 29, 10)) * 1_000_000n + 500_000_000n,
    endNs: BigInt(Date.UTC(2024, 1, 29, 10)) * 1_000_000n + 500_000_015n,
    seq: [{ path: 'usr/bin/redis', layer: 1, accessNs: 10, waitNs: 5 }],
  });
  t.is(parse({ ...good, image: { n: 'redis', t: '6' } }).image, 'redis:6');
  const digest = `sha256:${'0'.repeat(64)}`;
  t.is(imageKey(parse({ ...good, image: `host/redis@${digest}` })), digest);
  t.is(imageKey(parse({ ...good, image: digest })), digest);
  t.is(imageKey(parse(good)), 'redis:7');
  t.is(parse({ ...good, group: '' }).group, 'default');
  t.is(parse({ ...good, digest: '' }).digest, undefined);
});

test('unknown keys are ignored, items are sorted, the first sight of a file counts', (t) => {
  const tracer = parse({
    ...good,
    more: { of: [{ everything: 1 }] },
    seq: [
      { f: 'b', a: 3, w: 1, new: {} },
      { f: 'a', a: 2, w: 9 },
      { f: 'b', a: 1, w: null },
    ],
  });
  t.deepEqual(
    tracer.seq.map(({ path }) => path),
    ['b', 'a', 'b'],
  );
  t.deepEqual(
    firstSights(tracer).map(({ path, waitNs }) => [path, waitNs]),
    [
      ['b', 0],
      ['a', 9],
    ],
  );
});

test('names that are keys of every object are plain data', (t) => {
  const names = ['__proto__', 'constructor', 'toString', 'hasOwnProperty/__proto__'];
  const seq = names.map((f, a) => `{"f":"${f}","a":${a},"__proto__":{"w":7}}`).join();
  const text = `{"group":"__proto__","image":"constructor","start":"2024-01-01T00:00:00Z","seq":[${seq}],"__proto__":{"lost":5}}`;
  const tracer = parse(text);
  t.deepEqual(
    firstSights(tracer).map(({ path, waitNs }) => [path, waitNs]),
    names.map((name) => [name, 0]),
  );
  t.is(tracer.lost, undefined);
  t.is(tracer.group, '__proto__');
});

test('brackets and quotes in names do not count as nesting', (t) => {
  const f = `"${'['.repeat(40)}\\"{`;
  t.is(parse({ ...good, seq: [{ f, a: 0 }] }).seq[0]!.path, f);
});

const item = (keys: object) => ({ ...good, seq: [{ f: 'a', a: 1, w: 0, ...keys }] });

const REFUSED: [string, unknown, RegExp][] = [
  ['no JSON', '{"group":', /^file is not JSON/],
  ['NaN', '{"seq":[{"f":"a","a":NaN}]}', /^file is not JSON/],
  ['not UTF-8', Buffer.from([0x22, 0xff, 0x22]), /is not UTF-8/],
  ['a list', [], /no JSON object/],
  ['null', null, /no JSON object/],
  ['no seq', { ...good, seq: undefined }, /seq is missing/],
  ['seq an object', { ...good, seq: {} }, /seq is no list/],
  ['item a number', { ...good, seq: [1] }, /seq\[0\] is no JSON object/],
  ['no start', { ...good, start: undefined }, /start is missing/],
  ['start nonsense', { ...good, start: '2024-13-01T00:00:00Z' }, /start is no RFC 3339/],
  ['no image', { ...good, image: undefined }, /image is missing/],
  ['image a number', { ...good, image: 7 }, /image is no string/],
  ['image with control', { ...good, image: 'a\u001b[2J' }, /image holds control/],
  ['group too long', { ...good, group: 'g'.repeat(600) }, /group is longer/],
  ['group right to left', { ...good, group: 'a\u202eb' }, /group holds control/],
  ['digest', { ...good, digest: 'sha256:zz' }, /digest is no sha256/],
  ['newer', { ...good, version: 2 }, /version 2 is not known/],
  ['infinite', JSON.stringify(item({})).replace('"a":1', '"a":1e999'), /a is no whole number/],
  ['negative', item({ a: -1 }), /seq\[0\]: a is no whole number/],
  ['fraction', item({ w: 0.5 }), /w is no whole number/],
  ['too late', item({ a: TRACE_NS_MAX + 1 }), /a is no whole number/],
  ['text for a number', item({ a: '1' }), /a is no whole number/],
  ['no access', item({ a: null }), /a is missing/],
  ['layer', item({ s: 70000 }), /s is no whole number/],
  ['no name', item({ f: undefined }), /f is no string/],
  ['empty', item({ f: '' }), /f is refused: an empty path/],
  ['absolute', item({ f: '/etc/shadow' }), /an absolute path/],
  ['escapes', item({ f: 'a/../../etc/shadow' }), /'\.\.' as a name/],
  ['dot', item({ f: './a' }), /'\.' as a name/],
  ['slashes', item({ f: 'a//b' }), /'' as a name/],
  ['NUL', item({ f: 'a\0b' }), /a NUL/],
  ['long path', item({ f: 'a/'.repeat(3000) }), /longer than 4095/],
  ['long name', item({ f: 'a'.repeat(256) }), /longer than 255/],
  ['half a pair', JSON.stringify(item({ f: 'X' })).replace('X', '\\ud800'), /surrogate/],
  ['bytes not base64', item({ b: '%%' }), /not base64/],
  ['bytes escape', item({ b: Buffer.from('../a').toString('base64') }), /'\.\.' as a name/],
  ['content digest', item({ d: 'X'.repeat(64) }), /d is no sha256/],
  ['ranges', item({ r: {} }), /r is no list/],
  ['range', item({ r: [[0]] }), /no \[offset, length\]/],
  ['range negative', item({ r: [[-1, 5]] }), /offset or length/],
  ['range overflows', item({ r: [[2 ** 53 - 1, 2]] }), /offset or length/],
  ['range time', item({ r: [[0, 1, -5]] }), /time out of range/],
  ['received', { ...good, recv: [[1]] }, /recv holds/],
  ['deep', '['.repeat(1_000_000), /nests deeper than/],
  [
    'deep in an unknown key',
    { ...good, x: JSON.parse('['.repeat(40) + ']'.repeat(40)) },
    /nests deeper/,
  ],
  ['many lists', `[${'[],'.repeat(900_000)}[]]`, /has over \d+ lists/],
  [
    'too many items',
    `{"image":"a","start":"2024-01-01T00:00:00Z","seq":[${'0,'.repeat(200_000)}0]}`,
    /seq has 200001 entries/,
  ],
  ['too large', Buffer.alloc((32 << 20) + 1, ' '), /more than the 33554432 allowed/],
];

for (const [name, value, message] of REFUSED) {
  test(`refused: ${name}`, (t) => {
    const bytes = Buffer.isBuffer(value)
      ? value
      : Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
    const error = t.throws(() => parseTracer(bytes, 'file'), { instanceOf: FirstlightError });
    t.regex(error.message, message);
    t.true(error.message.length < 300);
  });
}

test('any bytes are read or refused, never worse', (t) => {
  const text = Buffer.from(formatTracer(parse({ ...good, recv: [[1, 2]] })));
  fc.assert(
    fc.property(
      fc.nat(text.length - 1),
      fc.uint8Array({ maxLength: 6 }),
      fc.nat(6),
      (at, put, cut) => {
        const bytes = Buffer.concat([text.subarray(0, at), put, text.subarray(at + cut)]);
        try {
          const tracer = parseTracer(bytes, 'file');
          t.true(tracer.endNs >= tracer.startNs);
          for (const { path, accessNs } of tracer.seq) {
            t.is(pathFault(path), undefined);
            t.true(Number.isSafeInteger(accessNs) && accessNs >= 0);
          }
        } catch (error) {
          if (!(error instanceof FirstlightError)) throw error;
        }
      },
    ),
    { numRuns: 3000 },
  );
});

const ns = fc.nat(2 ** 31 - 1);
const pathArbitrary = fc
  .array(fc.uint8Array({ minLength: 1, maxLength: 8 }), { minLength: 1, maxLength: 3 })
  .map((names) => names.map((name) => Buffer.from(name).toString('latin1')).join('/'))
  .filter((path) => pathFault(path) === undefined);
const rangeArbitrary = fc.record({ offsetBytes: ns, lengthBytes: ns, accessNs: ns, waitNs: ns });
const itemArbitrary = fc.record(
  {
    path: pathArbitrary,
    layer: fc.nat(0xffff),
    accessNs: ns,
    waitNs: ns,
    sizeBytes: ns,
    digest: fc.constant('c'.repeat(64)),
    arrivedNs: ns,
    ranges: fc.array(rangeArbitrary, { maxLength: 3 }),
  },
  { requiredKeys: ['path', 'layer', 'accessNs', 'waitNs'] },
);

test('what is written is read back, to the last byte of every name', (t) => {
  fc.assert(
    fc.property(
      fc.array(itemArbitrary, { maxLength: 5 }),
      fc.bigInt(0n, 2n ** 60n),
      (seq, startNs) => {
        const tracer: Tracer = {
          group: 'g',
          image: 'i',
          startNs,
          endNs: startNs + 2n ** 33n,
          seq: seq.sort((x, y) => x.accessNs - y.accessNs) as Tracer['seq'],
        };
        t.deepEqual(parseTracer(Buffer.from(formatTracer(tracer)), 'file'), tracer);
      },
    ),
    { numRuns: 300 },
  );
});

test('paths keep their bytes as text or as base64', (t) => {
  fc.assert(
    fc.property(pathArbitrary, (path) => {
      const { f, b } = JSON.parse(JSON.stringify(pathKeys(path)));
      t.deepEqual(pathOfKeys(f, b), { path });
    }),
  );
  t.deepEqual(pathKeys('\xef\xbb\xbfa'), { f: '\ufeffa' });
});

test('times keep their nanoseconds', (t) => {
  fc.assert(
    fc.property(fc.bigInt(-(2n ** 62n), 2n ** 62n), (time) => {
      t.is(parseTime(formatTime(time)), time);
    }),
  );
  t.is(parseTime('1970-01-01T00:00:00.000000001Z'), 1n);
  t.is(parseTime('1970-01-01T01:00:00+01:00'), 0n);
  t.is(formatTime(-1n), '1969-12-31T23:59:59.999999999Z');
  for (const bad of ['', 'now', '2024-02-30T99:00:00Z', '2024-01-01', '2024-01-01T00:00:00+99:00'])
    t.is(parseTime(bad), undefined);
});

test('groups that a user names', (t) => {
  t.is(checkGroup(''), 'default');
  t.is(checkGroup('web-1.2_a'), 'web-1.2_a');
  for (const bad of ['../x', 'a/b', 'a b', '-a', '.a', 'x'.repeat(65), 'é'])
    t.throws(() => checkGroup(bad), { instanceOf: FirstlightError });
});
