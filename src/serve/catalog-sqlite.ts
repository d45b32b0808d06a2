// The embedded catalog: SQLite in a worker thread, so that no query and no fsync ever holds up the
// thread that serves streams. The statements stand in catalog-sqlite-worker.ts. The open database is
// also the lock of the data directory: SQLite holds it exclusively until the process ends, however
// it ends.
import { readFile, writeFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { type ErrorKind, FirstlightError } from '../errors/errors.ts';
import type {
  BundleRecord,
  Catalog,
  ImageRecord,
  NamedImage,
  RanksRecord,
  Removed,
  Reorder,
  TraceBounds,
  TraceRecord,
} from './catalog.ts';

/** One call, as it travels to the worker thread. */
export interface CatalogCall {
  id: number;
  method: string;
  args: unknown[];
}

/** Its answer; `code` is SQLite's primary result code (sqlite.org/rescode.html), where it has one. */
export type CatalogAnswer =
  | { id: number; value: unknown }
  | { id: number; error: { message: string; code: number | undefined } };

/** Result codes that a user can do something about. */
const SQLITE: Record<number, { kind: ErrorKind; hint: string }> = {
  5: { kind: 'busy', hint: 'stop the other process, or speak to it with --server URL' },
  8: { kind: 'permission', hint: 'check who owns the directory of --data' },
  10: { kind: 'internal', hint: 'check the disk of --data' },
  11: { kind: 'corrupt', hint: 'restore catalog.db, or start with an empty --data directory' },
  13: { kind: 'no-space', hint: 'free some space on the disk of --data' },
  14: { kind: 'permission', hint: 'check who owns the directory of --data' },
  26: { kind: 'corrupt', hint: 'restore catalog.db, or start with an empty --data directory' },
};

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** Which process has the data directory, for the error that a second one gets. */
async function ownerOf(dataDir: string): Promise<string> {
  try {
    const owner = JSON.parse(await readFile(join(dataDir, 'owner.json'), 'utf8')) as {
      pid: number;
    };
    return `process ${owner.pid}`;
  } catch {
    // The note is a courtesy; the lock is what counts.
    return 'another process';
  }
}

/** {@link Catalog} in `<dataDir>/catalog.db`. */
export class SqliteCatalog implements Catalog {
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #next = 0;
  #dead: Error | undefined;

  private constructor() {
    // The same ending as this file: .ts in a checkout, .js in the published package.
    const file = `./catalog-sqlite-worker${extname(import.meta.url)}`;
    this.#worker = new Worker(new URL(file, import.meta.url), {
      name: 'catalog',
      env: {},
      // Flags of the main thread are not for this one (--input-type would even stop it).
      execArgv: [],
    });
    this.#worker.unref();
    this.#worker.on('message', (answer: CatalogAnswer) => this.#settle(answer));
    this.#worker.on('error', (error) => this.#fail(error as Error));
    this.#worker.on('exit', () => this.#fail(new Error('the catalog is closed')));
  }

  /**
   * Opens the catalog, made new where there is none, and takes the lock of the directory.
   * @throws 'busy' where another process has it, 'corrupt' where it is no catalog of this version
   */
  static async open(dataDir: string): Promise<SqliteCatalog> {
    const catalog = new SqliteCatalog();
    try {
      await catalog.#call('open', [join(dataDir, 'catalog.db')]);
    } catch (error) {
      await catalog.#end();
      if (error instanceof FirstlightError && error.kind === 'busy') {
        throw new FirstlightError('busy', `${dataDir} is in use by ${await ownerOf(dataDir)}`, {
          hint: 'stop that server, or speak to it with --server URL',
          cause: error,
        });
      }
      throw error;
    }
    await writeFile(join(dataDir, 'owner.json'), JSON.stringify({ pid: process.pid }));
    return catalog;
  }

  #settle(answer: CatalogAnswer): void {
    const pending = this.#pending.get(answer.id);
    if (pending === undefined) return;
    this.#pending.delete(answer.id);
    if (this.#pending.size === 0) this.#worker.unref();
    if ('error' in answer) {
      const known = SQLITE[answer.error.code ?? -1];
      pending.reject(
        new FirstlightError(
          known?.kind ?? 'internal',
          `catalog: ${answer.error.message}`,
          known === undefined ? {} : { hint: known.hint },
        ),
      );
    } else {
      pending.resolve(answer.value);
    }
  }

  #fail(error: Error): void {
    this.#dead ??= error;
    for (const pending of this.#pending.values()) pending.reject(this.#dead);
    this.#pending.clear();
  }

  async #end(): Promise<void> {
    // Without the reference nothing would keep the process alive until the thread has ended.
    this.#worker.ref();
    await this.#worker.terminate();
  }

  #call<T>(method: string, args: unknown[]): Promise<T> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const id = this.#next++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve as (value: unknown) => void, reject });
      // The thread keeps the process alive exactly while a call is under way.
      this.#worker.ref();
      this.#worker.postMessage({ id, method, args } satisfies CatalogCall);
    });
  }

  addImage(
    image: ImageRecord,
    contents: Buffer,
    name: string,
    bundle?: BundleRecord | undefined,
    ranks?: RanksRecord | undefined,
  ): Promise<void> {
    return this.#call('addImage', [image, contents, name, bundle, ranks]);
  }
  nameImage(digest: string, name: string): Promise<boolean> {
    return this.#call('nameImage', [digest, name]);
  }
  listImages(): Promise<NamedImage[]> {
    return this.#call('listImages', []);
  }
  findByName(name: string): Promise<NamedImage[]> {
    return this.#call('findByName', [name]);
  }
  findByDigest(digest: string): Promise<NamedImage | undefined> {
    return this.#call('findByDigest', [digest]);
  }
  removeImages(
    which: { name: string; platform: string | undefined } | { digest: string },
    contentsOf: ReadonlyMap<string, Buffer>,
  ): Promise<Removed> {
    return this.#call('removeImages', [which, contentsOf]);
  }
  usedContents(contents: Buffer): Promise<Uint8Array> {
    return this.#call('usedContents', [contents]);
  }
  findBundle(key: string): Promise<BundleRecord | undefined> {
    return this.#call('findBundle', [key]);
  }
  bundleById(id: string): Promise<BundleRecord | undefined> {
    return this.#call('bundleById', [id]);
  }
  freshBundle(image: string): Promise<BundleRecord | undefined> {
    return this.#call('freshBundle', [image]);
  }
  newestOfFamily(family: string): Promise<BundleRecord | undefined> {
    return this.#call('newestOfFamily', [family]);
  }
  addBundle(bundle: BundleRecord): Promise<boolean> {
    return this.#call('addBundle', [bundle]);
  }
  touchBundle(id: string, usedAt: number): Promise<void> {
    return this.#call('touchBundle', [id, usedAt]);
  }
  retireBundle(id: string): Promise<void> {
    return this.#call('retireBundle', [id]);
  }
  dropBundle(id: string): Promise<boolean> {
    return this.#call('dropBundle', [id]);
  }
  listBundles(): Promise<BundleRecord[]> {
    return this.#call('listBundles', []);
  }
  bundleIds(): Promise<string[]> {
    return this.#call('bundleIds', []);
  }
  retiredBundles(): Promise<string[]> {
    return this.#call('retiredBundles', []);
  }
  addTrace(
    trace: TraceRecord,
    data: Uint8Array,
    images: readonly string[],
    bounds: TraceBounds,
  ): Promise<boolean> {
    return this.#call('addTrace', [trace, data, images, bounds]);
  }
  listTraces(): Promise<TraceRecord[]> {
    return this.#call('listTraces', []);
  }
  traceData(ids: readonly string[]): Promise<(Uint8Array | undefined)[]> {
    return this.#call('traceData', [ids]);
  }
  removeTrace(id: string, images: readonly string[]): Promise<boolean> {
    return this.#call('removeTrace', [id, images]);
  }
  ranksOf(image: string): Promise<RanksRecord | undefined> {
    return this.#call('ranksOf', [image]);
  }
  orderOf(image: string): Promise<string> {
    return this.#call('orderOf', [image]);
  }
  setRanks(image: string, ranks: RanksRecord | undefined): Promise<void> {
    return this.#call('setRanks', [image, ranks]);
  }
  noteReorders(images: readonly string[]): Promise<void> {
    return this.#call('noteReorders', [images]);
  }
  nextReorder(): Promise<Reorder | undefined> {
    return this.#call('nextReorder', []);
  }
  isReordering(image: string): Promise<boolean> {
    return this.#call('isReordering', [image]);
  }
  dropReorder(reorder: Reorder): Promise<void> {
    return this.#call('dropReorder', [reorder]);
  }
  openChange(): Promise<number> {
    return this.#call('openChange', []);
  }
  closeChange(id: number): Promise<void> {
    return this.#call('closeChange', [id]);
  }
  openChanges(): Promise<number> {
    return this.#call('openChanges', []);
  }
  clearChanges(): Promise<void> {
    return this.#call('clearChanges', []);
  }
  ping(): Promise<void> {
    return this.#call('ping', []);
  }

  async close(): Promise<void> {
    if (this.#dead !== undefined) return;
    await this.#call('close', []);
    this.#dead = new Error('the catalog is closed');
    await this.#end();
  }
}
