// From numbers to operations, and back to replies: between a native side and a tree that only note what
// they are told. The real ones meet in test/e2e.
import test from 'ava';
import type { Logger } from '../log/log.ts';
import {
  ATTR,
  ATTR_SET,
  ATTR_SLOTS,
  IN,
  type NativeUpcalls,
  UPCALL,
  type UpcallHandler,
} from '../native/upcalls.ts';
import { type Entry, Errno, type TreeOperations, Wait } from '../tree/rw/operations.ts';
import { COUNTER, COUNTERS, readChanges, UpcallServer } from './upcalls.ts';

type Told = unknown[];

function entry(node: number): Entry {
  const attributes = new Float64Array(ATTR_SLOTS);
  attributes[ATTR.ino] = node;
  return { node, attributes, attrValidMs: 7 };
}

interface World {
  server: UpcallServer;
  counters: Float64Array;
  /** What native was told, and what the tree was asked. */
  replies: Told[];
  asked: Told[];
  logged: unknown[];
  send: UpcallHandler;
  request(op: keyof typeof UPCALL, args?: number[], name?: string, more?: Partial<Sent>): void;
}

interface Sent {
  call: number;
  name2: string;
  value: Uint8Array;
}

/** @param answers  what the tree's methods return, or throw */
function world(answers: Partial<Record<keyof TreeOperations, () => unknown>> = {}): World {
  const replies: Told[] = [];
  const asked: Told[] = [];
  const logged: unknown[] = [];
  let send: UpcallHandler | undefined;
  let gone = false;
  const native = new Proxy({} as NativeUpcalls, {
    get: (_, name: string) =>
      name === 'leave'
        ? () => {
            gone = true;
          }
        : (...given: unknown[]) => {
            replies.push([name, ...given.map(plain)]);
            if (name === 'addDirent') return replies.filter(([n]) => n === name).length < 4;
            return !gone;
          },
  });
  const tree = new Proxy({} as TreeOperations, {
    get:
      (_, name: keyof TreeOperations) =>
      (...given: unknown[]) => {
        asked.push([name, ...given.map(plain)]);
        return answers[name]?.();
      },
  });
  const log = { error: (what: unknown) => logged.push(what) } as unknown as Logger;
  const counters = new Float64Array(COUNTERS);
  const server = new UpcallServer(
    (handler) => {
      send = handler;
      return native;
    },
    () => tree,
    counters,
    log,
  );
  const request: World['request'] = (op, args = [], name = '', more = {}) => {
    const numbers = new Float64Array(24);
    numbers.set([UPCALL[op], 42, 1000, 100, 77, 0o22, ...args]);
    send!(more.call ?? 9, numbers, name, more.name2 ?? '', more.value);
  };
  return { server, counters, replies, asked, logged, send: send!, request };
}

/** Arrays of attributes as their inode number, so that what is noted can be read. */
function plain(value: unknown): unknown {
  if (value instanceof Float64Array)
    return value.length === ATTR_SLOTS ? value[ATTR.ino] : 'numbers';
  return value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : value;
}

const WHO = { uid: 1000, gid: 100, pid: 77, umask: 0o22 };
const BYTES = Buffer.from('value');

type Case = [
  op: keyof typeof UPCALL,
  args: number[],
  more: Partial<Sent>,
  returns: unknown,
  asked: Told,
  reply: Told,
];
const ENTRY = ['replyEntry', 9, 5, 5, Number.POSITIVE_INFINITY, 7];
const OPENED = { kind: 'upper', fd: 3, direct: true, tag: 8, ino: 7 };
const CASES: Case[] = [
  ['Lookup', [], {}, entry(5), ['lookup', 42, 'n'], ENTRY],
  ['Lookup', [], {}, undefined, ['lookup', 42, 'n'], ['replyNoEntry', 9]],
  ['Getattr', [], {}, entry(5), ['getattr', 42], ['replyAttr', 9, 5, 7]],
  ['Readlink', [], {}, Buffer.from('to'), ['readlink', 42], ['replyData', 9, 'to']],
  ['Symlink', [], { value: BYTES }, entry(5), ['symlink', 42, 'n', 'value', WHO], ENTRY],
  ['Mknod', [0o20600, 259], {}, entry(5), ['mknod', 42, 'n', 0o20600, 259, WHO], ENTRY],
  ['Mkdir', [0o755], {}, entry(5), ['mkdir', 42, 'n', 0o755, WHO], ENTRY],
  ['Unlink', [], {}, undefined, ['unlink', 42, 'n'], ['replyOk', 9]],
  ['Rmdir', [], {}, undefined, ['rmdir', 42, 'n'], ['replyOk', 9]],
  ['Rename', [43, 2], { name2: 'm' }, undefined, ['rename', 42, 'n', 43, 'm', 2], ['replyOk', 9]],
  ['Link', [50], {}, entry(5), ['link', 50, 42, 'n'], ENTRY],
  ['Open', [2, 1], {}, OPENED, ['open', 42, 2, true], ['replyOpen', 9, 3, 1, 8, 7]],
  ['Open', [0, 0], {}, { kind: 'template' }, ['open', 42, 0, false], ['openTemplate', 9]],
  [
    'Setxattr',
    [1, 1],
    { value: BYTES },
    undefined,
    ['setxattr', 42, 'n', 'value', 1, true],
    ['replyOk', 9],
  ],
  ['Getxattr', [64], {}, BYTES, ['getxattr', 42, 'n'], ['replyData', 9, 'value']],
  ['Getxattr', [5], {}, BYTES, ['getxattr', 42, 'n'], ['replyData', 9, 'value']],
  ['Getxattr', [4], {}, BYTES, ['getxattr', 42, 'n'], ['replyError', 9, 34]],
  ['Getxattr', [0], {}, BYTES, ['getxattr', 42, 'n'], ['replySize', 9, 5]],
  ['Listxattr', [9], {}, ['a', 'b\xff'], ['listxattr', 42, WHO], ['replyData', 9, 'a\0b\xff\0']],
  ['Listxattr', [0], {}, ['a', 'b\xff'], ['listxattr', 42, WHO], ['replySize', 9, 5]],
  ['Removexattr', [], {}, undefined, ['removexattr', 42, 'n'], ['replyOk', 9]],
  ['Statfs', [], {}, undefined, ['statfs', 'numbers'], ['replyStatfs', 9, 'numbers']],
  [
    'Create',
    [0o102, 0o644],
    {},
    { entry: entry(5), opened: OPENED },
    ['create', 42, 'n', 0o102, 0o644, WHO],
    ['replyCreate', 9, 5, 5, 7, 3, 1, 8],
  ],
  [
    'Tmpfile',
    [0o600, 2],
    {},
    { entry: entry(5), opened: OPENED },
    ['tmpfile', 42, 2, 0o600, WHO],
    ['replyCreate', 9, 5, 5, 7, 3, 1, 8],
  ],
];

for (const [index, [op, args, more, returns, asked, reply]] of CASES.entries()) {
  test(`${op} is put to the tree and answered (${index})`, (t) => {
    const at = world({ [asked[0] as string]: () => returns });
    at.request(op, args, 'n', more);
    t.deepEqual(at.asked, [asked]);
    t.deepEqual(at.replies, [reply]);
    t.deepEqual([...at.counters], [1, 0, 0]);
  });
}

test('Forget and Release are never answered', (t) => {
  const at = world({
    release: () => {
      throw new Error('unknown tag');
    },
  });
  at.request('Forget', [42, 3], '', { call: 0 });
  at.request('Release', [8], '', { call: 0 });
  t.deepEqual(at.asked, [
    ['forget', 42, 3],
    ['release', 8],
  ]);
  t.deepEqual(at.replies, []);
  t.is(at.logged.length, 1);
});

test('what native has done in the tree’s place is told to it, and is no request', (t) => {
  const at = world();
  at.request('Created', [7, 8, 0o102], 'n', { call: 0 });
  at.request('Removed', [3], 'n', { call: 0 });
  t.deepEqual(at.asked, [
    ['created', 42, 'n', 7, 8, 0o102],
    ['removed', 42, 'n', 3],
  ]);
  t.deepEqual(at.replies, []);
  t.deepEqual([...at.counters], [0, 0, 0]);
});

test('one Forget names several nodes, and an error of one is none of the others', (t) => {
  let calls = 0;
  const at = world({
    forget: () => {
      if (++calls === 1) throw new Error('of a bug');
    },
  });
  const most = Array.from({ length: 9 }, (_, i) => [7 + i, i + 1]);
  at.request('Forget', most.flat(), '', { call: 0 });
  at.request('Forget', [2 ** 32, 1, 2 ** 32 + 1, 2, 0, 5], '', { call: 0 });
  t.deepEqual(at.asked, [
    ...most.map(([node, lookups]) => ['forget', node, lookups]),
    ['forget', 2 ** 32, 1],
    ['forget', 2 ** 32 + 1, 2],
  ]);
  t.deepEqual(at.replies, []);
  t.is(at.logged.length, 1);
});

test('what is not named in a Setattr stays', (t) => {
  const numbers = new Float64Array(20);
  const set = (bits: number) => {
    numbers.set([bits, 0o4755, 1, 2, 2 ** 40, -5, 6, 7, 8, 9, 10, -1], IN.arg);
    return readChanges(numbers);
  };
  t.deepEqual(set(0), {});
  t.deepEqual(set(ATTR_SET.mode | ATTR_SET.size), { mode: 0o4755, size: 2 ** 40 });
  t.deepEqual(set(ATTR_SET.uid), { uid: 1 });
  t.deepEqual(set(ATTR_SET.gid | ATTR_SET.killSuidgid), { gid: 2, killSuidgid: true });
  t.deepEqual(set(ATTR_SET.atime | ATTR_SET.mtime), {
    atime: { sec: -5, nsec: 6 },
    mtime: { sec: 7, nsec: 8 },
  });
  t.deepEqual(set(ATTR_SET.atime | ATTR_SET.atimeNow | ATTR_SET.mtimeNow), {
    atime: 'now',
    mtime: 'now',
  });
  const at = world({ setattr: () => entry(5) });
  at.request('Setattr', [ATTR_SET.size, 0, 0, 0, 11]);
  t.deepEqual(at.asked, [['setattr', 42, { size: 11 }, WHO]]);
  t.deepEqual(at.replies, [['replyAttr', 9, 5, 7]]);
});

test('errors: those of a program go to it, a full disk too, any other one is logged', (t) => {
  const errors: [unknown, number, number][] = [
    [new Errno(39, 'not empty'), 39, 0],
    [new Errno(5, 'the disk fails'), 5, 1],
    [Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', errno: 28 }), 28, 0],
    [Object.assign(new Error('EBADF'), { code: 'EBADF', errno: 9 }), 9, 1],
    [new TypeError('a bug'), 5, 1],
    // As Node.js numbers its own.
    [Object.assign(new Error('EMFILE'), { code: 'EMFILE', errno: -24 }), 5, 1],
  ];
  for (const [error, errno, logged] of errors) {
    const at = world({
      unlink: () => {
        throw error;
      },
    });
    at.request('Unlink', [], 'n');
    t.deepEqual(at.replies, [['replyError', 9, errno]]);
    t.is(at.logged.length, logged);
    t.is(at.counters[COUNTER.failures], logged);
  }
});

test('an operation that nobody knows ends with ENOSYS', (t) => {
  const at = world();
  const numbers = new Float64Array(20);
  numbers[IN.op] = 63;
  at.send(9, numbers, '', '', undefined);
  t.deepEqual(at.replies, [['replyError', 9, 38]]);
});

test('a request waits for its content and is done again, but never twice for the same', (t) => {
  let tries = 0;
  const at = world({
    open: () => {
      if (tries++ < 1) throw new Wait({ content: 3 });
      return OPENED;
    },
  });
  at.request('Open', [2, 0]);
  t.deepEqual(at.replies, [['waitForContent', 9, 3]]);
  at.request('Open', [2, 0]);
  t.deepEqual(at.replies.at(-1), ['replyOpen', 9, 3, 1, 8, 7]);
  t.is(at.counters[COUNTER.waits], 1);

  const never = world({
    open: () => {
      throw new Wait({ content: 3 });
    },
  });
  never.request('Open', [2, 0]);
  never.request('Open', [2, 0]);
  t.deepEqual(never.replies, [
    ['waitForContent', 9, 3],
    ['replyError', 9, 5],
  ]);
  t.is(never.logged.length, 1);
});

test('a request that waits for a copy is sent again when it is done, unless all has ended', async (t) => {
  const copy = Promise.withResolvers<void>();
  const at = world({
    setattr: () => {
      throw new Wait({ done: copy.promise });
    },
  });
  at.request('Setattr', [ATTR_SET.mode, 0o600]);
  t.deepEqual(at.replies, []);
  copy.resolve();
  await copy.promise;
  await Promise.resolve();
  t.deepEqual(at.replies, [['again', 9]]);
  const other = Promise.withResolvers<void>();
  const ended = world({
    setattr: () => {
      throw new Wait({ done: other.promise });
    },
  });
  ended.request('Setattr', [ATTR_SET.mode, 0o600]);
  ended.server.close();
  other.resolve();
  await other.promise;
  await Promise.resolve();
  t.deepEqual(ended.replies, [['close']]);
  t.deepEqual(ended.asked.at(-1), ['close']);
});

test('syncs are answered when they are done', async (t) => {
  const at = world({
    fsyncDirectory: () => Promise.resolve(),
    fsync: () => Promise.resolve(),
    syncfs: () => Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO', errno: 5 })),
  });
  at.request('Fsyncdir', [0]);
  at.request('Syncfs', [], '', { call: 10 });
  at.request('Fsync', [], '', { call: 11 });
  t.deepEqual(at.replies, []);
  await new Promise(setImmediate);
  t.deepEqual(at.replies, [
    ['replyOk', 9],
    ['replyError', 10, 5],
    ['replyOk', 11],
  ]);
});

test('what a caller who is gone was to get is let go', (t) => {
  const at = world({
    lookup: () => entry(5),
    create: () => ({ entry: entry(6), opened: OPENED }),
    open: () => OPENED,
  });
  (at.server.native as unknown as { leave(): void }).leave();
  at.request('Lookup', [], 'n');
  at.request('Create', [0o102, 0o644], 'n');
  at.request('Open', [2, 0]);
  t.deepEqual(
    at.asked.filter(([name]) => name === 'forget' || name === 'release'),
    [
      ['forget', 5, 1],
      ['forget', 6, 1],
      ['release', 8],
      ['release', 8],
    ],
  );
});

test('a listing goes on where the last one ended, and counts the lookups that were given out', (t) => {
  const names = function* () {
    for (const [index, name] of ['a', 'b', 'c'].entries()) {
      yield { name, cookie: index + 3, entry: entry(index + 10) };
    }
  };
  const answers = { list: names, getattr: () => entry(42), parentOf: () => entry(1) };
  const first = world(answers);
  // There is room for three.
  first.request('Readdir', [0, 4096, 1]);
  t.deepEqual(first.replies, [
    ['addDirent', 9, '.', 1, 0, 42, 7],
    ['addDirent', 9, '..', 2, 0, 1, 7],
    ['addDirent', 9, 'a', 3, 10, 10, 7],
    ['addDirent', 9, 'b', 4, 11, 11, 7],
    ['replyListing', 9],
  ]);
  t.deepEqual(first.asked.slice(2), [
    ['list', 42, 0],
    ['looked', 10],
  ]);
  const then = world(answers);
  then.request('Readdir', [2, 4096, 0]);
  t.deepEqual(then.replies[0], ['addDirent', 9, 'a', 3, 0, 10, 7]);
  t.deepEqual(then.asked, [['list', 42, 0]]);
  const after = world({ ...answers, list: () => [] });
  after.request('Readdir', [5, 4096, 1]);
  t.deepEqual(after.asked, [['list', 42, 5]]);
  t.deepEqual(after.replies, [['replyListing', 9]]);
  const gone = world(answers);
  (gone.server.native as unknown as { leave(): void }).leave();
  gone.request('Readdir', [2, 4096, 1]);
  t.deepEqual(
    gone.asked.filter(([name]) => name === 'looked' || name === 'forget'),
    [
      ['looked', 10],
      ['looked', 11],
      ['looked', 12],
      ['forget', 10, 1],
      ['forget', 11, 1],
      ['forget', 12, 1],
    ],
  );
});
