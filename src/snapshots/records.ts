// The records of snapshots as the rest of the daemon calls them: each method of RecordsDb, by promise,
// answered from a thread of its own.
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { type ErrorKind, FirstlightError } from '../errors/errors.ts';
import type { RecordsDb } from './records-db.ts';

export interface RecordsCall {
  id: number;
  method: keyof RecordsDb | 'open';
  args: unknown[];
}

export type RecordsAnswer =
  | { id: number; value: unknown }
  | { id: number; error: { kind: ErrorKind; message: string; hint: string | undefined } };

type Method = keyof RecordsDb;

/** The open records; one process has them at a time. */
export class Records {
  readonly #worker: Worker;
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  #next = 0;
  #dead: Error | undefined;

  private constructor() {
    // The same ending as this file: .ts in a checkout, .js in the published package.
    const file = `./records-worker${extname(import.meta.url)}`;
    this.#worker = new Worker(new URL(file, import.meta.url), {
      name: 'snapshots',
      env: {},
      execArgv: [],
    });
    this.#worker.unref();
    this.#worker.on('message', (answer: RecordsAnswer) => this.#settle(answer));
    this.#worker.on('error', (error) => this.#fail(error as Error));
    this.#worker.on('exit', () => this.#fail(new Error('the thread of the records has ended')));
  }

  /**
   * Opens the records, made where there are none.
   * @param path       the database
   * @param directory  holds the snapshots' directories
   * @throws FirstlightError `busy` where another process has them, `unsupported`, `corrupt`
   */
  static async open(path: string, directory: string): Promise<Records> {
    const records = new Records();
    try {
      await records.#send('open', [path, directory]);
      return records;
    } catch (error) {
      await records.#worker.terminate();
      throw error;
    }
  }

  /** Runs one method of the records in its own transaction. */
  call<M extends Method>(
    method: M,
    ...args: Parameters<RecordsDb[M]>
  ): Promise<ReturnType<RecordsDb[M]>> {
    return this.#send(method, args) as Promise<ReturnType<RecordsDb[M]>>;
  }

  #send(method: RecordsCall['method'], args: unknown[]): Promise<unknown> {
    if (this.#dead !== undefined) return Promise.reject(this.#dead);
    const call: RecordsCall = { id: this.#next++, method, args };
    const pending = Promise.withResolvers<unknown>();
    this.#pending.set(call.id, pending);
    this.#worker.ref();
    this.#worker.postMessage(call);
    return pending.promise;
  }

  #settle(answer: RecordsAnswer): void {
    const pending = this.#pending.get(answer.id);
    this.#pending.delete(answer.id);
    if (this.#pending.size === 0) this.#worker.unref();
    if ('value' in answer) pending?.resolve(answer.value);
    else {
      const { kind, message, hint } = answer.error;
      pending?.reject(new FirstlightError(kind, message, hint === undefined ? {} : { hint }));
    }
  }

  #fail(error: Error): void {
    this.#dead ??= new FirstlightError('internal', error.message, { cause: error });
    for (const { reject } of this.#pending.values()) reject(this.#dead);
    this.#pending.clear();
  }

  async close(): Promise<void> {
    if (this.#dead === undefined) await this.call('close');
    await this.#worker.terminate();
  }
}
