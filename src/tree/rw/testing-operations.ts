// Random images and random operations on them, for model tests. Only tests import it.
import fc from 'fast-check';
import type { Spec } from '../../delta/testing.ts';

const letter = fc.constantFrom('a', 'b', 'c', 'd');
/** One end of an operation: some directory, and a name in it. */
const place = fc.record({ directory: fc.nat({ max: 30 }), name: letter });
const text = fc.constantFrom('', 'x', 'some text', 'y'.repeat(5000));
const mode = fc.constantFrom(0o644, 0o755, 0o600, 0o711);
const owner = fc.constantFrom(0, 7, 1000);

/** One operation; what it is about may not be there. */
export const operation = fc.oneof(
  fc.record({ op: fc.constant('create' as const), at: place, text, mode, owner }),
  fc.record({ op: fc.constant('mkdir' as const), at: place, mode, owner }),
  fc.record({ op: fc.constant('symlink' as const), at: place, owner }),
  fc.record({ op: fc.constant('mkfifo' as const), at: place, mode }),
  fc.record({ op: fc.constant('tmpfile' as const), at: place, text }),
  { weight: 3, arbitrary: fc.record({ op: fc.constant('unlink' as const), at: place }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('rmdir' as const), at: place }) },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant('rename' as const),
      at: place,
      to: place,
      flags: fc.constantFrom(0, 0, 0, 1, 2),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('link' as const), at: place, to: place }) },
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant('write' as const),
      at: place,
      text,
      offset: fc.constantFrom(0, 3, 9000),
    }),
  },
  fc.record({ op: fc.constant('empty' as const), at: place }),
  fc.record({ op: fc.constant('truncate' as const), at: place, bytes: fc.constantFrom(0, 2, 70) }),
  fc.record({ op: fc.constant('chmod' as const), at: place, mode }),
  fc.record({ op: fc.constant('chown' as const), at: place, owner }),
  fc.record({
    op: fc.constant('utimes' as const),
    at: place,
    sec: fc.integer({ min: 5, max: 99 }),
  }),
  fc.record({ op: fc.constant('setxattr' as const), at: place, text: fc.constantFrom('1', '2') }),
  fc.record({ op: fc.constant('removexattr' as const), at: place }),
  fc.record({ op: fc.constant('hold' as const), at: place }),
  fc.record({ op: fc.constant('letGo' as const), which: fc.nat({ max: 5 }) }),
  fc.record({ op: fc.constant('reopen' as const) }),
);
export type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never;

/** Random images: the same Spec under two names is a hard link. */
export const image = fc
  .array(
    fc.record({
      at: fc.nat({ max: 9 }),
      name: letter,
      kind: fc.constantFrom(
        'dir',
        'dir',
        'dir',
        'file',
        'file',
        'file',
        'symlink',
        'fifo',
        'again',
      ),
      text,
      mode,
      owner,
      xattr: fc.boolean(),
    }),
    { maxLength: 24 },
  )
  .map((steps) => {
    const root: Record<string, Spec> = {};
    const directories = [root];
    const files: Spec[] = [];
    for (const step of steps) {
      const into = directories[step.at % directories.length]!;
      if (into[step.name] !== undefined) continue;
      const spec: Spec = { mode: step.mode, uid: step.owner, gid: step.owner, mtimeSec: 3 };
      if (step.xattr) spec.xattrs = new Map([['trusted.x', Buffer.from('0')]]);
      if (step.kind === 'again' && files.length > 0) {
        into[step.name] = files[step.at % files.length]!;
        continue;
      }
      if (step.kind === 'dir') {
        spec.entries = {};
        directories.push(spec.entries);
      } else if (step.kind === 'symlink')
        Object.assign(spec, { type: 'symlink', target: 'to', mode: 0o777 });
      else if (step.kind === 'fifo') spec.type = 'fifo';
      else spec.data = step.text;
      if (step.kind !== 'dir') files.push(spec);
      into[step.name] = spec;
    }
    return root;
  });
