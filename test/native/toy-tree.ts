// A writable tree that is just enough to see what native does with one: new files in one directory,
// files of the image that are copied when they are first written, and switches that make it answer in
// unusual ways. The real one is src/tree/rw. Runs in the process that holds the mount.
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  renameSync,
  type Stats,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Toc } from '../../src/delta/toc.ts';
import { type NativeTemplate, native } from '../../src/native/index.ts';
import {
  ATTR,
  ATTR_SET,
  ATTR_SLOTS,
  FIRST_OWN_NODE,
  IN,
  type NativeUpcalls,
  OPEN_AS,
  UPCALL,
} from '../../src/native/upcalls.ts';
import type { MountRequest } from './mount-child.ts';

const { EIO, ENOENT, ENOTSUP, ESTALE } = { EIO: 5, ENOENT: 2, ENOTSUP: 95, ESTALE: 116 };
const READY = 2;
/** Bits of open(2) that say read, write or both. */
const O_ACCMODE = 3;

/** A file in the upper directory. */
interface File {
  node: number;
  path: string;
  ino: number;
  /** Of an unlinked file: keeps it until the kernel forgets it. */
  fd?: number;
}

interface Call {
  call: number;
  numbers: Float64Array;
  name: string;
  name2: string;
  value: Uint8Array | undefined;
}

export class ToyTree {
  readonly #native: NativeUpcalls;
  readonly #template: NativeTemplate;
  readonly #toc: Toc;
  readonly #digests: Buffer;
  readonly #request: MountRequest;
  readonly #upper: string;
  readonly #files = new Map<number, File>();
  /** `${parent}/${name}`: node, or 0 where the name was removed. */
  readonly #names = new Map<string, number>();
  #next = FIRST_OWN_NODE;
  /** Operations, by their names in UPCALL, that are neither answered nor refused. */
  #held = new Set<string>();
  readonly #heldCalls: number[] = [];
  readonly #errors = new Map<string, number>();
  #as: number = OPEN_AS.Passthrough;
  #tag = 0;
  readonly #seen: { op: string; node: number; name: string; numbers: number[]; value?: string }[] =
    [];
  #undelivered = 0;

  constructor(channel: number, request: MountRequest, upper: string, template: NativeTemplate) {
    this.#request = request;
    this.#upper = upper;
    this.#template = template;
    this.#toc = new Toc(readFileSync(request.toc));
    this.#digests = readFileSync(request.digests);
    this.#native = new (native().Upcalls)(channel, (call, numbers, name, name2, value) =>
      this.#take({ call, numbers, name, name2, value }),
    );
  }

  /** What the test asks for. */
  obey(call: string, args: unknown[]): unknown {
    switch (call) {
      case 'hold':
        this.#held = new Set(args as string[]);
        return;
      case 'held':
        return this.#heldCalls.length;
      case 'again':
        for (const held of this.#heldCalls.splice(0)) this.#native.again(held);
        return;
      case 'fail':
        this.#errors.set(args[0] as string, args[1] as number);
        return;
      case 'openAs':
        this.#as = args[0] as number;
        return;
      case 'tag':
        this.#tag = args[0] as number;
        return;
      case 'seen':
        return this.#seen.splice(0);
      case 'files':
        return [...this.#files.keys()];
      case 'undelivered':
        return this.#undelivered;
      case 'count':
        return this.#native.count();
      case 'wakes':
        return this.#native.wakes();
      case 'holdRoot':
        return this.#native.holdRoot(openSync(args[0] as string, constants.O_DIRECTORY));
      case 'close':
        return this.#native.close();
      case 'node':
        return this.#node(args[0] as string);
      case 'openHandles':
        return this.#native.openHandles(args[0] as number);
      case 'thaw':
        return this.#native.thaw(args[0] as number);
      case 'chmod':
        chmodSync(this.#files.get(args[0] as number)!.path, args[1] as number);
        return;
      case 'setfattr': {
        const [node, name, value] = args as [number, string, string];
        execFileSync('setfattr', ['-n', name, '-v', value, this.#files.get(node)!.path]);
        return;
      }
      case 'adopt': {
        const file = this.#files.get(args[0] as number)!;
        const fd = openSync(file.path, 'r');
        return this.#native.adopt(file.node, fd, file.ino, 0, Number(args[1]));
      }
      case 'adoptDirectory': {
        const [node, path] = args as [number, string];
        return this.#native.adopt(node, openSync(path, constants.O_DIRECTORY), node, 2, 0);
      }
      case 'lend': {
        const [node, path, row, changes = 0] = args as [number, string, number, number?];
        return this.#native.lend(node, openSync(path, constants.O_DIRECTORY), row, changes);
      }
      case 'lease':
        return this.#native.leaseNodes(args[0] as number, args[1] as number);
      case 'sleep':
        // The tree's thread is busy with something that is no request of this mount, from when that file is there
        // until it is gone.
        writeFileSync(args[0] as string, '');
        while (existsSync(args[0] as string))
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
        return;
      case 'recall':
        return this.#native.recall(args[0] as number);
      case 'disown':
        return this.#native.disown(args[0] as number);
      case 'invalidate':
        this.#native.invalidate(args[0] as number, args[1] as string);
        return this.#native.invalidated();
      default:
        throw new Error(`what is ${call}?`);
    }
  }

  #node(path: string): number {
    const slash = path.lastIndexOf('/');
    const parent = slash < 0 ? 1 : this.#node(path.slice(0, slash));
    const known = this.#names.get(`${parent}/${path.slice(slash + 1)}`);
    if (known !== undefined) return known;
    const row = this.#toc.lookup(parent - 1, Buffer.from(path.slice(slash + 1), 'latin1'));
    return row < 0 ? 0 : this.#toc.inode(row) + 1;
  }

  #take(request: Call): void {
    const { call, numbers, name } = request;
    const op = Object.entries(UPCALL).find(([, number]) => number === numbers[IN.op])?.[0] ?? '?';
    const node = numbers[IN.node]!;
    const value =
      request.value === undefined ? {} : { value: Buffer.from(request.value).toString('latin1') };
    this.#seen.push({ op, node, name, numbers: [...numbers], ...value });
    if (op === 'Removed') closeSync(numbers[IN.arg]!);
    if (call === 0) {
      for (let slot: number = IN.arg; op === 'Forget' && (numbers[slot] ?? 0) !== 0; slot += 2)
        this.#forget(numbers[slot]!);
      return;
    }
    if (this.#held.has(op)) {
      this.#heldCalls.push(call);
      return;
    }
    const error = this.#errors.get(op);
    try {
      if (error !== undefined) this.#native.replyError(call, error);
      else this.#answer(op, request);
    } catch (thrown) {
      process.stderr.write(`toy tree: ${op}: ${String(thrown)}\n`);
      this.#native.replyError(call, EIO);
    }
  }

  #answer(op: string, request: Call): unknown {
    const { call, numbers, name } = request;
    const node = numbers[IN.node]!;
    switch (op) {
      case 'Lookup': {
        const found = this.#node2(node, name);
        if (found === 0) return this.#native.replyNoEntry(call);
        return this.#reply(
          this.#native.replyEntry(call, found, this.#attributes(found), Infinity, Infinity),
        );
      }
      case 'Getattr':
        return this.#native.replyAttr(call, this.#attributes(node), Infinity);
      case 'Setattr':
        return this.#setattr(request, node);
      case 'Open':
        return this.#open(request, node);
      case 'Create':
        return this.#create(request, node);
      case 'Unlink':
        return this.#unlink(request, node);
      case 'Readdir':
        return this.#list(request, node);
      case 'Statfs':
        return this.#native.replyStatfs(
          call,
          Float64Array.of(4096, 4096, 100, 50, 40, 30, 20, 255),
        );
      case 'Setxattr':
      case 'Removexattr':
        return this.#native.replyOk(call);
      case 'Getxattr':
        if (name !== 'user.toy') return this.#native.replyError(call, 61);
        return this.#native.replyData(call, Buffer.from('toy value'));
      case 'Listxattr':
        return this.#native.replyData(call, Buffer.from('user.toy\0'));
      case 'Readlink':
        return this.#native.replyData(call, Buffer.from('toy target'));
      case 'Fsyncdir':
        return setImmediate(() => this.#native.replyOk(call));
      default:
        return this.#native.replyError(call, ENOTSUP);
    }
  }

  #reply(delivered: boolean): void {
    if (!delivered) this.#undelivered++;
  }

  #node2(parent: number, name: string): number {
    const known = this.#names.get(`${parent}/${name}`);
    if (known !== undefined) return known;
    if (parent > this.#toc.rows) return 0;
    const row = this.#toc.lookup(parent - 1, Buffer.from(name, 'latin1'));
    return row < 0 ? 0 : this.#toc.inode(row) + 1;
  }

  #attributes(node: number): Float64Array {
    const slots = new Float64Array(ATTR_SLOTS);
    const file = this.#files.get(node);
    if (file !== undefined) {
      const fd = file.fd ?? openSync(file.path, constants.O_RDONLY | constants.O_NOFOLLOW);
      try {
        return fromStat(fstatSync(fd), file.ino, slots);
      } finally {
        if (file.fd === undefined) closeSync(fd);
      }
    }
    const row = node - 1;
    slots[ATTR.ino] = node;
    slots[ATTR.mode] = this.#toc.mode(row);
    slots[ATTR.nlink] = this.#toc.nlink(row);
    slots[ATTR.uid] = this.#toc.uid(row);
    slots[ATTR.gid] = this.#toc.gid(row);
    slots[ATTR.size] = this.#toc.size(row);
    slots[ATTR.mtimeSec] = this.#toc.mtimeSec(row);
    slots[ATTR.blksize] = 4096;
    return slots;
  }

  #create({ call, numbers, name }: Call, parent: number): unknown {
    const flags = numbers[IN.arg]!;
    const node = this.#next++;
    const file = { node, path: join(this.#upper, `new-${node}`), ino: node };
    const access = flags & (O_ACCMODE | constants.O_APPEND);
    const fd = openSync(
      file.path,
      access | constants.O_CREAT | constants.O_EXCL,
      numbers[IN.arg + 1]! & 0o7777 & ~numbers[IN.umask]!,
    );
    this.#native.thaw(parent);
    this.#files.set(node, file);
    this.#names.set(`${parent}/${name}`, node);
    return this.#reply(
      this.#native.replyCreate(
        call,
        node,
        this.#attributes(node),
        Infinity,
        fd,
        this.#as,
        this.#tag,
      ),
    );
  }

  #unlink({ call, name }: Call, parent: number): unknown {
    const node = this.#node2(parent, name);
    this.#native.thaw(parent);
    this.#names.set(`${parent}/${name}`, 0);
    const file = this.#files.get(node);
    if (file !== undefined) {
      file.fd = openSync(file.path, constants.O_RDONLY);
      unlinkSync(file.path);
    }
    return this.#native.replyOk(call);
  }

  #forget(node: number): void {
    const file = this.#files.get(node);
    // One that native has made and adopted.
    if (file === undefined) this.#native.disown(node);
    if (file?.fd === undefined) return;
    closeSync(file.fd);
    this.#files.delete(node);
    this.#native.disown(node);
  }

  /** The file of a node of the image, copied if need be; undefined where the request has to wait. */
  #promoted(call: number, node: number): File | undefined {
    const known = this.#files.get(node);
    if (known !== undefined) return known;
    const content = this.#toc.content(node - 1);
    const path = join(this.#upper, `copy-${node}`);
    if (content >= 0) {
      if (this.#template.state(content) !== READY) {
        this.#native.waitForContent(call, content);
        return undefined;
      }
      const digest = this.#digests.toString('hex', content * 32, content * 32 + 32);
      copyFileSync(
        join(this.#request.contentDir, digest.slice(0, 2), digest.slice(2)),
        `${path}.work`,
      );
    } else {
      closeSync(openSync(`${path}.work`, 'w'));
    }
    chmodSync(`${path}.work`, this.#toc.mode(node - 1) & 0o7777);
    renameSync(`${path}.work`, path);
    this.#native.thaw(node);
    const file = { node, path, ino: node };
    this.#files.set(node, file);
    return file;
  }

  #open({ call, numbers }: Call, node: number): unknown {
    const flags = numbers[IN.arg]!;
    const writes = (flags & O_ACCMODE) !== constants.O_RDONLY;
    const known = this.#files.get(node);
    if (known === undefined && node > this.#toc.rows) return this.#native.replyError(call, ENOENT);
    if (known === undefined && !writes) return this.#native.openTemplate(call);
    const file = known ?? this.#promoted(call, node);
    if (file === undefined) return undefined;
    if (known === undefined && this.#native.openHandles(node) > 0) {
      // Who reads goes on with the image's; the name gets a node of its own.
      const moved = { ...file, node: this.#next++ };
      this.#files.delete(node);
      this.#files.set(moved.node, moved);
      const row = node - 1;
      const parent = this.#toc.parent(row) + 1;
      this.#names.set(`${parent}/${this.#toc.name(row)}`, moved.node);
      this.#native.invalidate(parent, this.#toc.name(row));
      return this.#native.invalidated().then(() => this.#native.replyError(call, ESTALE));
    }
    const kept = O_ACCMODE | constants.O_APPEND | constants.O_TRUNC;
    const path = file.fd === undefined ? file.path : `/proc/self/fd/${file.fd}`;
    const fd = openSync(path, flags & kept);
    return this.#reply(this.#native.replyOpen(call, fd, this.#as, this.#tag, 0));
  }

  #setattr({ call, numbers }: Call, node: number): unknown {
    const file = this.#promoted(call, node);
    if (file === undefined) return undefined;
    const set = numbers[IN.arg]!;
    const path = file.fd === undefined ? file.path : `/proc/self/fd/${file.fd}`;
    if ((set & ATTR_SET.mode) !== 0) chmodSync(path, numbers[IN.arg + 1]! & 0o7777);
    if ((set & ATTR_SET.size) !== 0) truncateSync(path, numbers[IN.arg + 4]!);
    return this.#native.replyAttr(call, this.#attributes(node), Infinity);
  }

  #list({ call, numbers }: Call, node: number): unknown {
    const names = new Map<string, number>();
    if (node <= this.#toc.rows) {
      const { first, end } = this.#toc.children(node - 1);
      for (let row = first; row < end; row++) {
        names.set(this.#toc.name(row), this.#toc.inode(row) + 1);
      }
    }
    for (const [key, value] of this.#names) {
      const slash = key.indexOf('/');
      if (Number(key.slice(0, slash)) !== node) continue;
      if (value === 0) names.delete(key.slice(slash + 1));
      else names.set(key.slice(slash + 1), value);
    }
    let cookie = 0;
    for (const [name, child] of names) {
      cookie++;
      if (cookie <= numbers[IN.arg]!) continue;
      const attributes = this.#attributes(child);
      if (!this.#native.addDirent(call, name, cookie, child, attributes, Infinity)) break;
    }
    return this.#reply(this.#native.replyListing(call));
  }
}

function fromStat(stat: Stats, ino: number, slots: Float64Array): Float64Array {
  slots[ATTR.ino] = ino;
  slots[ATTR.size] = stat.size;
  slots[ATTR.blocks] = stat.blocks;
  slots[ATTR.atimeSec] = Math.floor(stat.atimeMs / 1000);
  slots[ATTR.mtimeSec] = Math.floor(stat.mtimeMs / 1000);
  slots[ATTR.ctimeSec] = Math.floor(stat.ctimeMs / 1000);
  slots[ATTR.mode] = stat.mode;
  slots[ATTR.nlink] = stat.nlink;
  slots[ATTR.uid] = stat.uid;
  slots[ATTR.gid] = stat.gid;
  slots[ATTR.blksize] = stat.blksize;
  return slots;
}
