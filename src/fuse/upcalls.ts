// Requests of the kernel, as native hands them over, put to a tree and answered: which operation of
// the tree each one is, what its numbers mean, what becomes of errors and of waits. What does not live
// here: how the tree does it (tree/rw), the layout of the protocol (native/).
//
// Everything here runs on the tree's thread, one request at a time.
import type { Logger } from '../log/log.ts';
import {
  ATTR_SET,
  IN,
  type NativeUpcalls,
  OPEN_AS,
  UPCALL,
  type UpcallHandler,
} from '../native/upcalls.ts';
import {
  type Caller,
  type Changes,
  type Entry,
  Errno,
  type Opened,
  type TreeHost,
  type TreeOperations,
  Wait,
} from '../tree/rw/operations.ts';
import { type Listing, listInto } from './listing.ts';

const EIO = 5;
const EBADF = 9;
const ENFILE = 23;
const EMFILE = 24;
const ERANGE = 34;
const ENOSYS = 38;
const STATFS_SLOTS = 8;
/** Errnos that are no news of the program's own doing: a failing disk, a bug, no descriptors left. */
const ALARMING = new Set([EIO, EBADF, ENFILE, EMFILE]);
/** System calls whose errors are the program's: a full disk, a name that is refused. */
const EXPECTED = new Set(['ENOSPC', 'EDQUOT', 'ENAMETOOLONG', 'EMLINK', 'EEXIST', 'ENOENT']);
/** Waits whose request native answered by itself are never heard of again; beyond so many they are dropped. */
const WAITS_MAX = 4096;

/** Slots of a mount's counters, which another thread may read at any moment (TreeStats). */
export const COUNTER = { upcalls: 0, waits: 1, failures: 2 } as const;
export const COUNTERS = 3;

/** Makes the native side with the handler it is to call. */
export type UpcallsFactory = (handler: UpcallHandler) => NativeUpcalls;
/** Makes the tree; `isReady` tells whether a content is whole and verified, as far as is known here. */
export type TreeFactory = (host: TreeHost, isReady: (content: number) => boolean) => TreeOperations;

/** One request as its operation sees it. */
interface Request {
  call: number;
  numbers: Float64Array;
  name: string;
  name2: string;
  value: Uint8Array | undefined;
}

type Operation = (server: UpcallServer, request: Request) => void;

/** Answers the requests of one mount from its tree. */
export class UpcallServer {
  readonly native: NativeUpcalls;
  readonly tree: TreeOperations;
  readonly #log: Logger;
  readonly #counters: Float64Array;
  /** Contents that were seen whole: their requests need not ask native again. */
  readonly #ready = new Set<number>();
  /** Content that a request waits for. */
  readonly #waiting = new Map<number, number>();
  #closed = false;

  /** @param counters  COUNTERS slots, counted up from what they hold */
  constructor(
    makeUpcalls: UpcallsFactory,
    makeTree: TreeFactory,
    counters: Float64Array,
    log: Logger,
  ) {
    this.#log = log;
    this.#counters = counters;
    this.native = makeUpcalls((call, numbers, name, name2, value) =>
      this.#take({ call, numbers, name, name2, value }),
    );
    try {
      this.tree = makeTree(this.native, (content) => this.#ready.has(content));
    } catch (error) {
      this.native.close();
      throw error;
    }
  }

  #count(slot: number): void {
    this.#counters[slot] = (this.#counters[slot] ?? 0) + 1;
  }

  /** Ends the tree; requests that still come end with EIO. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.native.close();
    this.tree.close();
  }

  #take(request: Request): void {
    const { call } = request;
    const op = request.numbers[IN.op] ?? 0;
    // News of what needed no tree are no requests.
    if (op !== UPCALL.Created && op !== UPCALL.Removed) this.#count(COUNTER.upcalls);
    const waited = this.#waiting.get(call);
    if (waited !== undefined) {
      // Sent again: the content is whole.
      this.#waiting.delete(call);
      this.#ready.add(waited);
    }
    const operation = OPERATIONS[op];
    try {
      if (operation === undefined) throw new Errno(ENOSYS, `operation ${op}`);
      operation(this, request);
    } catch (error) {
      if (error instanceof Wait) this.#wait(call, error, waited);
      else this.fail(call, error, NAMES[op] ?? `operation ${op}`);
    }
  }

  #wait(call: number, { content, done }: Wait, waited: number | undefined): void {
    if (content !== undefined) {
      if (content === waited) {
        // Native says it is whole, and the tree cannot have it: waiting again would go on for ever.
        this.fail(call, new Error(`content ${content} cannot be opened`), 'open');
        return;
      }
      this.#count(COUNTER.waits);
      this.#ready.delete(content);
      if (this.#waiting.size >= WAITS_MAX) this.#waiting.clear();
      this.#waiting.set(call, content);
      this.native.waitForContent(call, content);
      return;
    }
    this.#count(COUNTER.waits);
    void done?.then(() => {
      if (!this.#closed) this.native.again(call);
    });
  }

  /** Answers with the errno of an error; one that no program caused is logged. */
  fail(call: number, error: unknown, what: string): void {
    if (this.#closed) return;
    const { errno, code } = error as { errno?: unknown; code?: unknown };
    const known = typeof errno === 'number' && errno > 0 ? errno : undefined;
    const told = error instanceof Errno ? !ALARMING.has(error.errno) : EXPECTED.has(String(code));
    if (!told) {
      this.#count(COUNTER.failures);
      this.#log.error({ err: error, operation: what }, 'a request on a writable mount failed');
    }
    // Forget and Release have nobody to hear of it.
    if (call !== 0) this.native.replyError(call, known ?? EIO);
  }

  /** Answers when the promise is settled. */
  settle(call: number, done: Promise<void>, what: string): void {
    done.then(
      () => {
        if (!this.#closed) this.native.replyOk(call);
      },
      (error: unknown) => this.fail(call, error, what),
    );
  }

  /** One of several that the kernel has let go: an error of one is none of the others. */
  forget(node: number, lookups: number): void {
    try {
      this.tree.forget(node, lookups);
    } catch (error) {
      this.fail(0, error, 'forget');
    }
  }

  /** An entry that the kernel looks up by it; one that it did not hear of is forgotten again. */
  entry(call: number, { node, attributes, attrValidMs }: Entry): void {
    if (!this.native.replyEntry(call, node, attributes, Number.POSITIVE_INFINITY, attrValidMs)) {
      this.tree.forget(node, 1);
    }
  }
}

const arg = ({ numbers }: Request, slot: number): number => numbers[IN.arg + slot] ?? 0;
const node = ({ numbers }: Request): number => numbers[IN.node] ?? 0;

function caller({ numbers }: Request): Caller {
  return {
    uid: numbers[IN.uid] ?? 0,
    gid: numbers[IN.gid] ?? 0,
    pid: numbers[IN.pid] ?? 0,
    umask: numbers[IN.umask] ?? 0,
  };
}

/** What a Setattr is to set; its numbers stand in native/upcalls.ts. */
export function readChanges(numbers: Float64Array): Changes {
  const at = (slot: number) => numbers[IN.arg + slot] ?? 0;
  const set = at(0);
  const changes: Changes = {};
  if (set & ATTR_SET.mode) changes.mode = at(1);
  if (set & ATTR_SET.uid) changes.uid = at(2);
  if (set & ATTR_SET.gid) changes.gid = at(3);
  if (set & ATTR_SET.size) changes.size = at(4);
  // The kernel sets both bits where it means the present moment.
  if (set & ATTR_SET.atimeNow) changes.atime = 'now';
  else if (set & ATTR_SET.atime) changes.atime = { sec: at(5), nsec: at(6) };
  if (set & ATTR_SET.mtimeNow) changes.mtime = 'now';
  else if (set & ATTR_SET.mtime) changes.mtime = { sec: at(7), nsec: at(8) };
  if (set & ATTR_SET.killSuidgid) changes.killSuidgid = true;
  return changes;
}

const openAs = (opened: Opened & { kind: 'upper' }): number =>
  opened.direct ? OPEN_AS.Direct : OPEN_AS.Passthrough;

function open(server: UpcallServer, request: Request): void {
  const { call } = request;
  const opened = server.tree.open(node(request), arg(request, 0), arg(request, 1) === 1);
  if (opened.kind === 'template') {
    server.native.openTemplate(call);
    return;
  }
  const { fd, tag, ino } = opened;
  const told = server.native.replyOpen(call, fd, openAs(opened), tag, ino);
  if (!told && tag !== 0) server.tree.release(tag);
}

function created(
  server: UpcallServer,
  call: number,
  { entry, opened }: ReturnType<TreeOperations['create']>,
): void {
  const { native, tree } = server;
  const { node, attributes, attrValidMs } = entry;
  const { fd, tag } = opened;
  if (native.replyCreate(call, node, attributes, attrValidMs, fd, openAs(opened), tag)) return;
  tree.forget(node, 1);
  if (tag !== 0) tree.release(tag);
}

/** Answers with bytes, or with their number where the room that is offered is none. */
function data(server: UpcallServer, call: number, bytes: Uint8Array, room: number): void {
  if (room === 0) server.native.replySize(call, bytes.length);
  else if (bytes.length > room) server.native.replyError(call, ERANGE);
  else server.native.replyData(call, bytes);
}

function readdir(server: UpcallServer, request: Request): void {
  const listing: Listing = {
    call: request.call,
    node: node(request),
    cookie: arg(request, 0),
    plus: arg(request, 2) === 1,
  };
  listInto(server.native, server.tree, listing);
}

const NOTHING = new Uint8Array(0);

/** Every operation by its number. */
const TABLE: Record<keyof typeof UPCALL, Operation> = {
  Lookup: (server, request) => {
    const found = server.tree.lookup(node(request), request.name);
    if (found === undefined) server.native.replyNoEntry(request.call);
    else server.entry(request.call, found);
  },
  Forget: (server, { numbers }) => {
    for (let slot: number = IN.arg; (numbers[slot] ?? 0) !== 0; slot += 2)
      server.forget(numbers[slot] ?? 0, numbers[slot + 1] ?? 0);
  },
  Getattr: ({ native, tree }, request) => {
    const { attributes, attrValidMs } = tree.getattr(node(request));
    native.replyAttr(request.call, attributes, attrValidMs);
  },
  Setattr: ({ native, tree }, request) => {
    const changes = readChanges(request.numbers);
    const { attributes, attrValidMs } = tree.setattr(node(request), changes, caller(request));
    native.replyAttr(request.call, attributes, attrValidMs);
  },
  Readlink: ({ native, tree }, request) =>
    native.replyData(request.call, tree.readlink(node(request))),
  Symlink: (server, request) => {
    const { call, name, value = NOTHING } = request;
    server.entry(call, server.tree.symlink(node(request), name, value, caller(request)));
  },
  Mknod: (server, request) => {
    const [mode, rdev] = [arg(request, 0), arg(request, 1)];
    const made = server.tree.mknod(node(request), request.name, mode, rdev, caller(request));
    server.entry(request.call, made);
  },
  Mkdir: (server, request) => {
    const made = server.tree.mkdir(node(request), request.name, arg(request, 0), caller(request));
    server.entry(request.call, made);
  },
  Unlink: ({ native, tree }, request) => {
    tree.unlink(node(request), request.name);
    native.replyOk(request.call);
  },
  Rmdir: ({ native, tree }, request) => {
    tree.rmdir(node(request), request.name);
    native.replyOk(request.call);
  },
  Rename: ({ native, tree }, request) => {
    const { call, name, name2 } = request;
    tree.rename(node(request), name, arg(request, 0), name2, arg(request, 1));
    native.replyOk(call);
  },
  Link: (server, request) =>
    server.entry(request.call, server.tree.link(arg(request, 0), node(request), request.name)),
  Open: open,
  Statfs: ({ native, tree }, request) => {
    const numbers = new Float64Array(STATFS_SLOTS);
    tree.statfs(numbers);
    native.replyStatfs(request.call, numbers);
  },
  Release: ({ tree }, request) => tree.release(arg(request, 0)),
  Setxattr: ({ native, tree }, request) => {
    const { call, name, value = NOTHING } = request;
    tree.setxattr(node(request), name, value, arg(request, 0), arg(request, 1) === 1);
    native.replyOk(call);
  },
  Getxattr: (server, request) =>
    data(server, request.call, server.tree.getxattr(node(request), request.name), arg(request, 0)),
  Listxattr: (server, request) => {
    const names = server.tree.listxattr(node(request), caller(request)).map((name) => `${name}\0`);
    data(server, request.call, Buffer.from(names.join(''), 'latin1'), arg(request, 0));
  },
  Removexattr: ({ native, tree }, request) => {
    tree.removexattr(node(request), request.name);
    native.replyOk(request.call);
  },
  Fsync: (server, request) =>
    server.settle(request.call, server.tree.fsync(node(request)), 'fsync'),
  Fsyncdir: (server, request) =>
    server.settle(request.call, server.tree.fsyncDirectory(node(request)), 'fsyncdir'),
  Create: (server, request) => {
    const [flags, mode] = [arg(request, 0), arg(request, 1)];
    const { call, name } = request;
    created(server, call, server.tree.create(node(request), name, flags, mode, caller(request)));
  },
  Readdir: readdir,
  Syncfs: (server, request) => server.settle(request.call, server.tree.syncfs(), 'syncfs'),
  Created: ({ tree }, request) =>
    tree.created(node(request), request.name, arg(request, 0), arg(request, 1), arg(request, 2)),
  Removed: ({ tree }, request) => tree.removed(node(request), request.name, arg(request, 0)),
  Tmpfile: (server, request) => {
    const [mode, flags] = [arg(request, 0), arg(request, 1)];
    created(server, request.call, server.tree.tmpfile(node(request), flags, mode, caller(request)));
  },
};

/** The table by opcode, and the names for the log. */
const OPERATIONS: (Operation | undefined)[] = [];
const NAMES: (string | undefined)[] = [];
for (const [name, operation] of Object.entries(TABLE)) {
  const op = UPCALL[name as keyof typeof UPCALL];
  OPERATIONS[op] = operation;
  NAMES[op] = name.toLowerCase();
}
