import { createHash } from 'node:crypto';
import test from 'ava';
import fc from 'fast-check';
import { DigestSet } from './digest-set.ts';

/** A digest of which the first four bytes, the hash, are `home`: runs of collisions can be made. */
function digestAt(home: number, id: number): Buffer {
  const digest = createHash('sha256').update(`${id}`).digest();
  digest.writeUInt32LE(home);
  return digest;
}

test('behaves as a Set of hex strings, collisions and wrap-around included', (t) => {
  const step = fc.record({
    op: fc.constantFrom('add', 'add', 'delete', 'has'),
    // Homes at the end of a 16-slot table wrap around to its start.
    home: fc.constantFrom(0, 1, 14, 15),
    id: fc.nat(6),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
      const set = new DigestSet(8);
      const model = new Set<string>();
      for (const { op, home, id } of steps) {
        const digest = digestAt(home, id);
        const hex = digest.toString('hex');
        if (op === 'add') {
          if (set.add(digest) !== !model.has(hex)) return false;
          model.add(hex);
        } else if (op === 'delete') {
          if (set.delete(digest) !== model.delete(hex)) return false;
        } else if (set.has(digest) !== model.has(hex)) return false;
        if (set.size !== model.size) return false;
      }
      const members = [...set.values()].map((d) => d.toString('hex')).sort();
      return JSON.stringify(members) === JSON.stringify([...model].sort());
    }),
    { numRuns: 300 },
  );
  t.pass();
});

test('grows, and finds digests inside a larger buffer', (t) => {
  const many = Buffer.concat(
    Array.from({ length: 5000 }, (_, i) => createHash('sha256').update(`${i}`).digest()),
  );
  const set = new DigestSet(4);
  for (let at = 0; at < many.length; at += 32) set.add(many, at);
  t.is(set.size, 5000);
  for (let at = 0; at < many.length; at += 32) t.true(set.has(many, at));
  t.false(set.has(createHash('sha256').update('absent').digest()));
});

test('zeros are no digest', (t) => {
  const set = new DigestSet();
  t.false(set.add(Buffer.alloc(32)));
  t.false(set.has(Buffer.alloc(32)));
  t.is(set.size, 0);
});
