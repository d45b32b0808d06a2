// One delta server with images and, where they are reported to it, traces; and what became of a
// service started from it on an empty worker. What does not live here: which runs are made.
import { type ChildProcess, execFile } from 'node:child_process';
import { copyFileSync, cpSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { MountStatus } from '../../src/daemon/control.ts';
import type { ImageDetail } from '../../src/delta/protocol.ts';
import { Running } from '../images/run.ts';
import type { Service } from '../images/services.ts';
import { type BenchServer, ENTRY, NODE, openServer, Worker } from '../lib/program.ts';
import type { Workspace } from '../lib/workspace.ts';

const run = promisify(execFile);

/** One start of a service. */
export interface Start {
  /** From the command to ready, and that moment in ms since 1970. */
  readyMs: number;
  readyAt: number;
  /** Bytes of the bundle that had come by then, header included, and of all of it. */
  bytesReady: number;
  bytesAll: number;
  /** Trace file of the run, where one was recorded. */
  trace: string | undefined;
}

export class Site {
  readonly url: string;
  readonly #space: Workspace;
  readonly #server: ChildProcess;
  readonly #data: string;
  #workers = 0;

  private constructor(space: Workspace, server: BenchServer, data: string) {
    this.#space = space;
    this.url = server.url;
    this.#server = server.process;
    this.#data = data;
  }

  /**
   * A server.
   * @param rate  such as `100mbit`, shared by all transfers; undefined: unlimited
   * @param like  a closed one, whose images and traces this one has, too
   */
  static async open(space: Workspace, rate: string | undefined, like?: Site): Promise<Site> {
    const data = space.makeDirectory(`data-${process.hrtime.bigint()}`);
    if (like !== undefined) cpSync(like.#data, data, { recursive: true });
    const options = rate === undefined ? [] : ['--rate', rate];
    return new Site(space, await openServer(space, data, options), data);
  }

  /** Runs a command that speaks to this server. */
  async command(...args: string[]): Promise<void> {
    await run(NODE, [ENTRY, ...args, '--server', this.url], { maxBuffer: 64 << 20 });
  }

  /** Takes an image in, and has its bundle computed: a clock that starts now sees a server at rest. */
  async addImage(source: string, name: string): Promise<void> {
    await this.command('image', 'add', source, '--name', name);
    await this.#prepare(name);
  }

  /** Reports traces; returns when the orders that they make are in force. */
  async report(images: string[], ...traces: string[]): Promise<void> {
    await this.command('trace', 'report', '--wait', ...traces);
    for (const image of images) await this.#prepare(image);
  }

  async #prepare(image: string): Promise<void> {
    const answer = await fetch(`${this.url}/v1/delta?image=${image}&platform=linux/amd64`, {
      headers: { range: 'bytes=0-0' },
    });
    await answer.arrayBuffer();
    if (!answer.ok) throw new Error(`${image}: the server answers ${answer.status}`);
  }

  /** What the server knows of an image. */
  async image(name: string): Promise<ImageDetail> {
    return (await (await fetch(`${this.url}/v1/images/${name}`)).json()) as ImageDetail;
  }

  /** The bundle that an empty worker gets now. */
  async bundle(name: string): Promise<Buffer> {
    const answer = await fetch(`${this.url}/v1/delta?image=${name}&platform=linux/amd64`);
    if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
    return Buffer.from(await answer.arrayBuffer());
  }

  /** An empty worker with its daemon running. */
  async worker(): Promise<{ worker: Worker; close: () => Promise<void> }> {
    const root = this.#space.makeDirectory(`root-${process.hrtime.bigint()}-${this.#workers++}`);
    const worker = await Worker.start(this.#space, root, this.url);
    const close = async () => {
      await worker.stop();
      rmSync(root, { recursive: true });
    };
    return { worker, close };
  }

  /** Starts a service on a worker and ends it once it is ready. @param options  of `run` */
  async startOn(
    worker: Worker,
    service: Service,
    image: string,
    options: string[] = [],
  ): Promise<Omit<Start, 'trace'>> {
    const running = new Running(this.#space, worker, service, image, options);
    const readyMs = await running.readyMs();
    const transfer = await transferOf(worker, image);
    await running.end();
    return { readyMs, readyAt: running.startedAt + readyMs, ...transfer };
  }

  /**
   * Starts a service on an empty worker and ends it once it is ready.
   * @param group  records a trace for this group
   */
  async start(service: Service, image: string, group?: string): Promise<Start> {
    const { worker, close } = await this.worker();
    const options = group === undefined ? [] : ['--trace', group];
    const start = await this.startOn(worker, service, image, options);
    const [trace] = group === undefined ? [] : this.keepTraces(worker);
    await close();
    return { ...start, trace };
  }

  /** Waits until every byte of an image is on a worker. */
  async complete(worker: Worker, image: string): Promise<void> {
    const directory = this.#space.makeDirectory('complete');
    await worker.run('mount', image, directory, '--rw', 'off', '--wait');
    await worker.run('umount', directory);
  }

  /** Ends the server. Its data stays, for another one to begin with. */
  close(): Promise<void> {
    return this.#space.end(this.#server);
  }

  /** Copies of the traces that a worker has recorded, which stay when it is gone. */
  keepTraces(worker: Worker): string[] {
    const directory = join(worker.root, 'traces');
    const kept = this.#space.makeDirectory('traces');
    const names = readdirSync(directory).filter((name) => name.endsWith('.json'));
    return names.sort().map((name) => {
      copyFileSync(join(directory, name), join(kept, name));
      return join(kept, name);
    });
  }
}

/** How far the image of a running container has come, asked without the start of a program. */
async function transferOf(
  worker: Worker,
  image: string,
): Promise<{ bytesReady: number; bytesAll: number }> {
  const mounts = await worker.request<MountStatus[]>({ op: 'status' });
  const mount = mounts.find((each) => each.image === image);
  if (mount === undefined) throw new Error(`${image} is not mounted`);
  return {
    bytesReady: mount.headerBytes + mount.bytesDone,
    bytesAll: mount.headerBytes + mount.bytes,
  };
}
