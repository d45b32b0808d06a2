// Differences: what was taken away comes back, whatever the bytes; what is hostile is refused; what
// would take for ever is left.
import test from 'ava';
import fc from 'fast-check';
import { difference, restore } from './difference.ts';
import { noise, refuses } from './testing.ts';
import { VarintWriter } from './varint.ts';

/** True where the bytes come back from their difference. */
function comesBack(old: Uint8Array, bytes: Uint8Array): boolean {
  const found = difference(old, bytes);
  if (found === undefined) return false;
  const data = Buffer.from(found.data);
  restore(old, data, found.control, 'x');
  return data.equals(bytes);
}

const control = (...values: number[]): Buffer => {
  const writer = new VarintWriter();
  for (const [i, value] of values.entries())
    if (i % 3 === 2) writer.signed(value);
    else writer.unsigned(value);
  return writer.done();
};

test('code that has moved differs in its addresses alone', (t) => {
  // Entries of 16 bytes with an address in each: 4 KiB are new in front, and every address is larger by that.
  const program = (count: number, by: number) => {
    const bytes = noise(count * 16, 1);
    for (let i = 0; i < count; i++) bytes.writeUInt32LE(0x400000 + i * 977 + by, i * 16 + 4);
    return bytes;
  };
  const old = program(5000, 0);
  const bytes = Buffer.concat([noise(4096, 2), program(5000, 4096)]);
  const { data, control } = difference(old, bytes)!;
  t.true(comesBack(old, bytes));
  t.true(control.length < 200, `${control.length}`);
  const zeros = data.filter((byte) => byte === 0).length;
  t.true(zeros > 5000 * 13, `${zeros} zeros`);
});

test('any bytes come back', (t) => {
  // Few values, so that runs are found everywhere; pieces of the old ones in any order.
  const bytes = fc.uint8Array({ maxLength: 600, max: 3 });
  fc.assert(
    fc.property(
      bytes,
      fc.array(fc.tuple(fc.nat(600), fc.nat(200), bytes), { maxLength: 8 }),
      (old, pieces) => {
        const parts = pieces.flatMap(([from, length, more]) => [
          old.subarray(from, from + length),
          more,
        ]);
        return comesBack(old, Buffer.concat(parts));
      },
    ),
    { numRuns: 500 },
  );
  t.true(comesBack(noise(100_000, 1), noise(50_000, 2)));
  t.true(comesBack(Buffer.alloc(0), noise(100, 1)));
  t.true(comesBack(noise(100, 1), Buffer.alloc(0)));
});

test('the same bytes have the same difference', (t) => {
  const old = noise(50_000, 3);
  const bytes = Buffer.concat([old.subarray(20_000), noise(10, 4), old.subarray(0, 30_000)]);
  t.deepEqual(difference(old, bytes), difference(old, bytes));
});

test('contents that repeat themselves are given up, or done soon', (t) => {
  const started = process.cpuUsage();
  const old = Buffer.alloc(1 << 20, 'ab');
  t.true(comesBack(old, Buffer.alloc(1 << 20, 'ab')));
  const mixed = Buffer.alloc(1 << 20, 'ab');
  for (let at = 0; at < mixed.length; at += 997) mixed[at] = 0;
  const found = difference(old, mixed);
  t.true(found === undefined || comesBack(old, mixed));
  // It would take hours; a bound on the work is what ends it.
  const { user, system } = process.cpuUsage(started);
  t.true(user + system < 60e6, `${user + system} us of a processor`);
});

test('a control stream that leaves its data or the old bytes is refused', (t) => {
  const refused = (stream: Buffer, message: RegExp) => {
    refuses(t, () => restore(Buffer.alloc(50), Buffer.alloc(100), stream, 'frame 3'), message);
  };
  refused(control(51, 49, 0), /^frame 3: differences: 51 bytes at 0, of 50/);
  refused(control(0, 10, -1, 5, 85, 0), /^frame 3: differences: 5 bytes at -1, of 50/);
  refused(control(0, 10, 46, 5, 85, 0), /^frame 3: differences: 5 bytes at 46, of 50/);
  refused(control(101, 0, 0), /^frame 3: differences: bytes of a run is 101/);
  refused(control(50, 51, 0), /^frame 3: differences: bytes after a run is 51/);
  refused(control(50, 49, 0), /^frame 3: differences end 1 bytes early/);
  refused(Buffer.alloc(0), /^frame 3: differences end 100 bytes early/);
  refused(control(50), /^frame 3: differences: cut off/);
});
