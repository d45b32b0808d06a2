// A store made by hand, and a child process that mounts it: what every native test stands on.
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { Toc } from '../../src/delta/toc.ts';
import { buildToc } from '../../src/delta/toc-build.ts';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { fromText, type Inode, makeDirectory, type TreeNode } from '../../src/image/tree.ts';
import type { Opens, SessionFeatures, SessionStats } from '../../src/native/index.ts';
import type { ChildEvent, Command, MountRequest } from './mount-child.ts';

/** A tree under construction, with the bytes of its files. */
export class Tree {
  readonly root = makeDirectory('', 0);
  readonly data = new Map<string, Buffer>();

  directory(path: string): TreeNode {
    let node = this.root;
    for (const part of path.split('/').filter((name) => name !== '')) {
      const name = fromText(part);
      let child = node.children!.get(name);
      if (child === undefined) {
        child = makeDirectory(name, 0);
        node.children!.set(name, child);
      }
      node = child;
    }
    return node;
  }

  /** Adds an inode under a name given as a byte string; returns it for more names. */
  add(directory: string, name: string, inode: Partial<Inode> & Pick<Inode, 'type'>): Inode {
    const made = {
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtimeSec: 1_600_000_000,
      mtimeNsec: 0,
      size: 0,
      layer: 0,
      ...inode,
    };
    return this.link(directory, name, made);
  }

  link(directory: string, name: string, inode: Inode): Inode {
    const node: TreeNode = { name, inode };
    if (inode.type === 'dir') node.children = new Map();
    this.directory(directory).children!.set(name, node);
    return inode;
  }

  /** Adds a regular file with these bytes. */
  file(path: string, bytes: Buffer | string, more: Partial<Inode> = {}): Inode {
    const data = Buffer.from(bytes);
    const slash = path.lastIndexOf('/');
    const inode: Partial<Inode> & Pick<Inode, 'type'> = {
      type: 'file',
      size: data.length,
      ...more,
    };
    if (data.length > 0) {
      inode.digest = createHash('sha256').update(data).digest('hex');
      this.data.set(inode.digest, data);
    }
    return this.add(path.slice(0, Math.max(slash, 0)), fromText(path.slice(slash + 1)), inode);
  }
}

/** Bytes that look like nothing else: no zero runs, different for every seed. */
export function noise(bytes: number, seed: number): Buffer {
  const made = Buffer.alloc(bytes);
  let x = (seed * 2654435761 + 1) >>> 0;
  for (let at = 0; at < bytes; at++) {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    made[at] = x >>> 24;
  }
  return made;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** A store directory and the child that mounts it. */
export class Fixture {
  readonly dir: string;
  readonly toc: Toc;
  readonly #tree: Tree;
  readonly #digests: Buffer;
  readonly #mountPoints: string[] = [];
  readonly #spawned: ChildProcess[] = [];
  #child: ChildProcess | undefined;
  #next = 1;
  readonly #pending = new Map<number, Pending>();

  private constructor(dir: string, tree: Tree, toc: Buffer, digests: Buffer) {
    this.dir = dir;
    this.#tree = tree;
    this.toc = new Toc(toc);
    this.#digests = digests;
  }

  /** Writes the store of a tree; its contents come with `store` or `arrive`. Cleans up when the test ends. */
  static async make(t: ExecutionContext, tree: Tree): Promise<Fixture> {
    const dir = await mkdtemp(join(tmpdir(), 'firstlight-native-'));
    const { bytes, digests } = buildToc(tree.root);
    for (const sub of ['content', 'incoming']) await mkdir(join(dir, sub));
    await writeFile(join(dir, 'toc'), bytes);
    await writeFile(join(dir, 'digests'), digests);
    const fixture = new Fixture(dir, tree, bytes, digests);
    t.teardown(() => fixture.close());
    return fixture;
  }

  get child(): ChildProcess {
    return this.#child!;
  }

  /** Content index of a file by path. */
  content(path: string): number {
    const row = this.toc.resolve(fromText(path));
    if (row < 0) throw new Error(`no ${path}`);
    return this.toc.content(row);
  }

  digest(content: number): string {
    return this.#digests.toString('hex', content * 32, content * 32 + 32);
  }

  bytes(content: number): Buffer {
    return this.#tree.data.get(this.digest(content))!;
  }

  /** Puts whole contents under content/ (or incoming/). */
  async store(contents: number[], where: 'content' | 'incoming' = 'content'): Promise<void> {
    for (const content of contents) {
      const digest = this.digest(content);
      if (where === 'incoming') {
        await writeFile(join(this.dir, 'incoming', digest), this.bytes(content), { mode: 0o444 });
        continue;
      }
      await mkdir(join(this.dir, 'content', digest.slice(0, 2)), { recursive: true });
      const path = join(this.dir, 'content', digest.slice(0, 2), digest.slice(2));
      await writeFile(`${path}.new`, this.bytes(content), { mode: 0o444 });
      await rename(`${path}.new`, path);
    }
  }

  /** Stores and marks: what the receiver does with a frame of whole contents. */
  async arrive(...paths: string[]): Promise<void> {
    const contents = paths.map((path) => this.content(path));
    await this.store(contents);
    await this.send({ do: 'markReady', indexes: contents });
  }

  get partialPrefix(): string {
    return 'image.part';
  }

  /** Writes parts of a file that is still arriving and marks them. */
  async arriveParts(path: string, parts: number[]): Promise<void> {
    const content = this.content(path);
    const partial = join(this.dir, 'incoming', `${this.partialPrefix}.${content}`);
    const { open } = await import('node:fs/promises');
    const file = await open(partial, 'a').then(async (made) => {
      await made.close();
      return open(partial, 'r+');
    });
    const data = this.bytes(content);
    for (const part of parts) {
      const at = part * PART_BYTES;
      await file.write(data.subarray(at, at + PART_BYTES), 0, undefined, at);
    }
    await file.close();
    const first = this.toc.firstPart(content);
    await this.send({ do: 'markParts', indexes: parts.map((part) => first + part) });
  }

  /** The last part has come: the partial file becomes the content, as the receiver does it. */
  async completeParts(path: string): Promise<void> {
    const content = this.content(path);
    const digest = this.digest(content);
    await mkdir(join(this.dir, 'content', digest.slice(0, 2)), { recursive: true });
    await rename(
      join(this.dir, 'incoming', `${this.partialPrefix}.${content}`),
      join(this.dir, 'content', digest.slice(0, 2), digest.slice(2)),
    );
    await this.send({ do: 'markReady', indexes: [content] });
  }

  async storeAll(): Promise<void> {
    await this.store([...Array(this.toc.contents).keys()]);
  }

  /** Mounts; returns the mount points. With `ready`, every content is marked RoLayer. */
  async mount(
    options: {
      ready?: boolean;
      count?: number;
      source?: string;
      passthrough?: boolean;
      waitTimeoutMs?: number;
      threads?: number;
      tracing?: boolean;
      opens?: Opens;
      writable?: boolean;
    } = {},
  ): Promise<{ points: string[]; features: SessionFeatures[] }> {
    const { ready, count, writable, ...session } = options;
    const mounts: MountRequest['mounts'] = [];
    for (let i = 0; i < (count ?? 1); i++) {
      const mountPoint = join(this.dir, `mnt${i}`);
      await mkdir(mountPoint, { recursive: true });
      this.#mountPoints.push(mountPoint);
      const upper = join(this.dir, `upper${i}`);
      if (writable === true) await mkdir(upper, { recursive: true });
      mounts.push({ mountPoint, ...session, ...(writable === true ? { upper } : {}) });
    }
    await this.startChild();
    const request: MountRequest = {
      toc: join(this.dir, 'toc'),
      digests: join(this.dir, 'digests'),
      contentDir: join(this.dir, 'content'),
      incomingDir: join(this.dir, 'incoming'),
      partialPrefix: this.partialPrefix,
      mounts,
    };
    if (process.env.FIRSTLIGHT_TEST_PRELOAD !== undefined) {
      // A run that quietly took the ordinary addon would prove nothing.
      await this.send({ do: 'probe' });
      const maps = await readFile(`/proc/${this.child.pid}/maps`, 'utf8');
      if (!maps.includes('libasan') || !maps.includes('firstlight-asan.node')) {
        throw new Error('the addon does not run under the sanitizer');
      }
    }
    const { features } = (await this.send({ do: 'mount', request })) as {
      features: SessionFeatures[];
    };
    if (ready === true) {
      await this.send({ do: 'markReady', indexes: [...Array(this.toc.contents).keys()] });
    }
    return { points: mounts.map((mount) => mount.mountPoint), features };
  }

  /** Starts the child without mounting; `preload`: a library that is loaded before others. */
  async startChild(more: { preload?: string; env?: Record<string, string> } = {}): Promise<void> {
    if (this.#child !== undefined) return;
    const env: NodeJS.ProcessEnv = { ...process.env, ...more.env };
    // Under a sanitizer only the process that loads the addon has its runtime preloaded.
    const preloads = [process.env.FIRSTLIGHT_TEST_PRELOAD, more.preload].filter(Boolean);
    if (preloads.length > 0) env.LD_PRELOAD = preloads.join(' ');
    const path = new URL('./mount-child.ts', import.meta.url).pathname;
    const child = fork(path, [], {
      env,
      execArgv: [],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    this.#child = child;
    const started = new Promise<unknown>((resolve, reject) => {
      this.#pending.set(0, { resolve, reject });
    });
    child.on(
      'message',
      (message: { id: number; result: unknown; error?: NodeJS.ErrnoException }) => {
        const pending = this.#pending.get(message.id);
        this.#pending.delete(message.id);
        if (message.error === undefined) pending?.resolve(message.result);
        else pending?.reject(Object.assign(new Error(message.error.message), message.error));
      },
    );
    child.on('exit', (code, signal) => {
      for (const pending of this.#pending.values()) {
        pending.reject(new Error(`the mounting process ended: ${code ?? signal}`));
      }
      this.#pending.clear();
    });
    await started;
  }

  /** Has the child do something; rejects with its error. */
  send(command: Exclude<Command, { do: 'exit' }>): Promise<unknown> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.child.send({ id, command });
    });
  }

  /** Has the child end without unmounting; gives its exit code, or the signal that ended it. */
  exit(): Promise<number | NodeJS.Signals> {
    return new Promise((resolve) => {
      this.child.once('exit', (code, signal) => resolve(code ?? signal!));
      const command: Command = { do: 'exit' };
      this.child.send({ id: this.#next++, command });
    });
  }

  async stats(mount = 0): Promise<SessionStats> {
    return (await this.send({ do: 'stats', mount })) as SessionStats;
  }

  async events(): Promise<ChildEvent[]> {
    return (await this.send({ do: 'events' })) as ChildEvent[];
  }

  /** Waits until `count` requests wait for contents. */
  async untilWaiting(count: number): Promise<void> {
    await until(`${count} waiting`, async () => (await this.send({ do: 'waiting' })) === count);
  }

  /** Starts a program that is killed at the end of the test, should it still run. */
  start(command: string, ...args: string[]): Running {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#spawned.push(child);
    return new Running(child);
  }

  /** Ends everything that this fixture started, whatever state it is in. */
  async close(): Promise<void> {
    for (const child of this.#spawned) if (child.exitCode === null) child.kill('SIGKILL');
    const child = this.#child;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      const gone = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await gone;
    }
    const mounts = await readFile('/proc/self/mountinfo', 'utf8');
    const left = mounts
      .split('\n')
      .map((line) => line.split(' ')[4] ?? '')
      .filter((point) => point.startsWith(`${this.dir}/`))
      .reverse();
    for (const point of left) await new Running(spawn('umount', ['-l', point])).end;
    await rm(this.dir, { recursive: true, force: true });
  }
}

/** A running program with its output. */
export class Running {
  readonly child: ChildProcess;
  readonly end: Promise<{ code: number | null; signal: NodeJS.Signals | null; ms: number }>;
  out = '';
  err = '';

  constructor(child: ChildProcess) {
    this.child = child;
    const started = performance.now();
    child.stdout?.on('data', (data: Buffer) => {
      this.out += data.toString('latin1');
    });
    child.stderr?.on('data', (data: Buffer) => {
      this.err += data.toString('utf8');
    });
    this.end = new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) =>
        resolve({ code, signal, ms: performance.now() - started }),
      );
    });
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Waits for a line of output that contains `text`; rejects where the program ends without it. */
  async says(text: string): Promise<void> {
    const what = () => `"${text}" from ${this.child.spawnfile}; stderr: ${this.err}`;
    await until(what, async () => {
      // Before the output is looked at: what it has said until its end is there by then.
      const over = !this.running && (await this.end);
      if (!this.out.includes(text) && over) throw new Error(`it has ended: ${what()}`);
      return this.out.includes(text);
    });
  }
}

/** So long anything may take on a busy machine; what takes longer has not happened. Less than ava's own patience. */
const PATIENCE_MS = 120_000;

/** Waits until `holds` says true, at most `PATIENCE_MS`. */
export async function until(
  what: string | (() => string),
  holds: () => Promise<boolean>,
): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (!(await holds())) {
    if (performance.now() > end) {
      const said = typeof what === 'string' ? what : what();
      throw new Error(`not within ${PATIENCE_MS / 1000} s: ${said}`);
    }
    await sleep(10);
  }
}

/**
 * What `attempt` says it took, in ms: of the first of ten tries that was within `boundMs`, else of the last. On a
 * busy machine some of them may have waited for a processor; what is never in time never is.
 */
export async function withinOnce(boundMs: number, attempt: () => Promise<number>): Promise<number> {
  for (let tries = 1; ; tries++) {
    const ms = await attempt();
    if (ms < boundMs || tries === 10) return ms;
  }
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
