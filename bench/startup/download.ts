// curl of the very bundle that firstlight would be sent, over a connection of its own, to the last
// byte: what the line alone takes. Nothing is written, nothing is started.
import { execFile, execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { promisify } from 'node:util';
import type { Workspace } from '../lib/workspace.ts';
import type { Wan } from '../wan/wan.ts';
import { AS_WORKER, type DeltaSite } from './delta-site.ts';
import type { Breakdown, Mode, PreparedService, Start, System } from './system.ts';

const run = promisify(execFile);

export class DownloadSystem implements System {
  readonly name = 'curl-bundle';
  readonly modes = ['deploy', 'update'] as const;
  readonly #space: Workspace;
  readonly #wan: Wan;
  readonly #site: DeltaSite;

  constructor(space: Workspace, wan: Wan, site: DeltaSite) {
    this.#space = space;
    this.#wan = wan;
    this.#site = site;
  }

  version(): string {
    return execFileSync('curl', ['--version'], { encoding: 'utf8' }).split('\n')[0]!;
  }

  publish(services: PreparedService[]): Promise<void> {
    return this.#site.publish(services);
  }

  #url(service: PreparedService, mode: Mode): string {
    return this.#site.bundleUrl('traced', service, mode === 'update' ? 'old' : 'nothing');
  }

  async prepare(): Promise<void> {}

  async warmUp(service: PreparedService, mode: Mode): Promise<void> {
    await run('curl', ['--version']);
    await this.#site.touch(this.#url(service, mode));
  }

  async start(service: PreparedService, mode: Mode): Promise<Start> {
    const args = ['-sSf', ...AS_WORKER, '-o', '/dev/null', this.#url(service, mode)];
    const startedAt = Date.now();
    const child = this.#space.start(...this.#wan.atClient('curl', args));
    return { child, startedAt };
  }

  async done({ child }: Start): Promise<number> {
    const [code] = (await once(child, 'exit')) as [number | null];
    const at = Date.now();
    if (code !== 0) throw new Error(`curl ended with ${code}`);
    return at;
  }

  async breakdown(): Promise<Breakdown> {
    return {};
  }

  async stop(): Promise<void> {}
}
