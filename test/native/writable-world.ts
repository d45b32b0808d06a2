// A writable mount with a toy for a tree, and what tests of it ask for.
import { existsSync } from 'node:fs';
import { chmod, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { PART_BYTES } from '../../src/delta/toc-layout.ts';
import { Fixture, noise, Tree, until } from './fixture.ts';

export const LARGE = noise(2 * PART_BYTES + 500, 3);

/** A request as the toy saw it. */
export interface Seen {
  op: string;
  node: number;
  name: string;
  numbers: number[];
  value?: string;
}

/** `small`, `other`, `empty` and `lib/large.so`, writable. */
export class World {
  readonly fixture: Fixture;
  readonly root: string;

  private constructor(fixture: Fixture, root: string) {
    this.fixture = fixture;
    this.root = root;
  }

  static async make(
    t: ExecutionContext,
    options: Parameters<Fixture['mount']>[0] = {},
  ): Promise<World> {
    const tree = new Tree();
    tree.file('small', 'small content');
    tree.file('other', 'other content');
    tree.file('empty', '');
    tree.file('lib/large.so', LARGE);
    const fixture = await Fixture.make(t, tree);
    if (options.ready === true) await fixture.storeAll();
    const { points } = await fixture.mount({ ...options, writable: true });
    // For other users.
    await chmod(fixture.dir, 0o755);
    return new World(fixture, points[0]!);
  }

  toy(call: string, ...args: unknown[]): Promise<unknown> {
    return this.fixture.send({ do: 'toy', mount: 0, call, args });
  }

  /** Keeps the tree's thread busy, until the function that it gives is called. */
  async sleep(): Promise<() => Promise<void>> {
    const file = join(this.fixture.dir, 'asleep');
    const slept = this.toy('sleep', file);
    await until('it sleeps', async () => existsSync(file));
    return async () => {
      await rm(file);
      await slept;
    };
  }

  async seen(): Promise<Seen[]> {
    return (await this.toy('seen')) as Seen[];
  }

  /** Operations on one file since the last look; when the kernel forgets is its own affair. */
  async ops(path: string): Promise<string[]> {
    const node = await this.node(path);
    const seen = (await this.seen()).filter((one) => one.node === node && one.op !== 'Forget');
    return seen.map(({ op }) => op);
  }

  /** Node that the toy has for a path now. */
  async node(path: string): Promise<number> {
    return (await this.toy('node', path)) as number;
  }

  count(): Promise<number> {
    return this.toy('count') as Promise<number>;
  }

  async handles(path: string): Promise<number> {
    return (await this.toy('openHandles', await this.node(path))) as number;
  }
}
