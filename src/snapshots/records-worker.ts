// The thread that the records of snapshots live in (records-db.ts): takes calls one after the other, so
// that no query and no fsync holds up the thread that answers containerd.
import { parentPort } from 'node:worker_threads';
import { toFirstlightError } from '../errors/errors.ts';
import type { RecordsAnswer, RecordsCall } from './records.ts';
import { RecordsDb } from './records-db.ts';

const SQLITE_FULL = 13;
const SQLITE_BUSY = 5;
let db: RecordsDb | undefined;

function run({ method, args }: RecordsCall): unknown {
  if (method === 'open') {
    db = new RecordsDb(...(args as [string, string]));
    return undefined;
  }
  if (db === undefined) throw new Error('the records are not open');
  const work = db[method] as (...args: unknown[]) => unknown;
  return work.apply(db, args);
}

/** What went wrong, as it can travel between threads. */
function describe(thrown: unknown): Extract<RecordsAnswer, { error: unknown }>['error'] {
  const { errcode } = thrown as { errcode?: number };
  // The low byte of an extended result code of SQLite is the primary one.
  const code = errcode === undefined ? undefined : errcode & 0xff;
  const { kind, message, hint } = toFirstlightError(thrown);
  if (code === SQLITE_FULL) {
    return { kind: 'no-space', message, hint: 'free some space on the disk of --root' };
  }
  if (code === SQLITE_BUSY) return { kind: 'busy', message, hint: undefined };
  return { kind, message, hint };
}

parentPort!.on('message', (call: RecordsCall) => {
  let answer: RecordsAnswer;
  try {
    answer = { id: call.id, value: run(call) };
  } catch (thrown) {
    answer = { id: call.id, error: describe(thrown) };
  }
  parentPort!.postMessage(answer);
});
