import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { errorJson, errorLine, formatBytes, formatMs, formatTable, shortDigest } from './print.ts';

test('bytes', (t) => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.0 kB'],
    [99_400, '99.4 kB'],
    [99_500, '100 kB'],
    [999_499, '999 kB'],
    [999_500, '1.0 MB'],
    [1_400_000_000, '1.4 GB'],
  ];
  for (const [bytes, text] of cases) t.is(formatBytes(bytes), text);
});

test('times', (t) => {
  t.is(formatMs(0), '0 ms');
  t.is(formatMs(850.4), '850 ms');
  t.is(formatMs(12_345), '12.3 s');
  t.is(formatMs(59_999), '1 min 0 s');
  t.is(formatMs(245_000), '4 min 5 s');
  t.is(formatMs(12_000_000), '3 h 20 min');
});

test('an error is one line, with what to do', (t) => {
  const error = new FirstlightError('busy', 'a\n  b', { hint: 'do c' });
  t.is(errorLine(error), 'firstlight: a b; do c');
  t.deepEqual(errorJson(error), { kind: 'busy', message: 'a\n  b', hint: 'do c' });
  t.is(errorLine(new TypeError('x')), 'firstlight: x');
  t.deepEqual(errorJson(new TypeError('x')), { kind: 'internal', message: 'x' });
});

test('tables have no trailing space', (t) => {
  t.is(
    formatTable([
      ['A', 'BB'],
      ['aaa', ''],
      ['', 'b'],
    ]),
    'A    BB\naaa\n     b',
  );
});

test('digests are cut', (t) => {
  t.is(shortDigest(`sha256:${'0123456789'.repeat(6)}abcd`), 'sha256:012345678901');
  t.is(shortDigest('other'), 'other');
});
