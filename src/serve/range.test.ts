import test from 'ava';
import { select } from './range.ts';

const etag = '"abc"';
const full = { status: 200, start: 0, end: 100 } as const;
const part = (start: number, end: number) => ({ status: 206, start, end }) as const;

test('ranges', (t) => {
  for (const [range, wanted] of [
    ['bytes=0-0', part(0, 1)],
    ['bytes=0-99', part(0, 100)],
    ['bytes=10-', part(10, 100)],
    ['bytes=99-200', part(99, 100)],
    ['bytes=99-99999999999999999999999', part(99, 100)],
    ['bytes=-1', part(99, 100)],
    ['bytes=-100', part(0, 100)],
    ['bytes=-5000', part(0, 100)],
    ['BYTES=5-6', part(5, 7)],
    ['bytes=100-', { status: 416 }],
    ['bytes=99999999999999999999999-', { status: 416 }],
    ['bytes=-0', { status: 416 }],
    ['bytes=5-4', full],
    ['bytes=-', full],
    ['bytes=0-1,3-4', full],
    ['bytes=a-b', full],
    ['bytes=1.5-2', full],
    ['bytes=+1-2', full],
    ['lines=0-1', full],
    ['', full],
  ] as const) {
    t.deepEqual(select({ range }, etag, 100), wanted, range);
  }
  t.deepEqual(select({ range: 'bytes=-5' }, etag, 0), { status: 416 });
});

test('If-Range compares strongly', (t) => {
  const range = 'bytes=5-6';
  t.deepEqual(select({ range, 'if-range': etag }, etag, 100), part(5, 7));
  for (const other of ['"abd"', 'W/"abc"', 'abc', 'Wed, 21 Oct 2026 07:28:00 GMT', '']) {
    t.deepEqual(select({ range, 'if-range': other }, etag, 100), full, other);
  }
});

test('If-None-Match comes first', (t) => {
  for (const header of [etag, '*', 'W/"abc"', '"x", "abc"', ' "x",W/"abc" ']) {
    t.deepEqual(
      select({ range: 'bytes=5-6', 'if-none-match': header }, etag, 100),
      { status: 304 },
      header,
    );
  }
  t.deepEqual(select({ 'if-none-match': '"x"' }, etag, 100), full);
});
