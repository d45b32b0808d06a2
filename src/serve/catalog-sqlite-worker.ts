// The thread behind SqliteCatalog: the schema and every statement but those of traces and orders
// (catalog-sqlite-traces.ts). One call is one transaction.
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import { parentPort } from 'node:worker_threads';
import type { BundleRecord, ImageRecord, NamedImage, RanksRecord, Removed } from './catalog.ts';
import type { CatalogAnswer, CatalogCall } from './catalog-sqlite.ts';
import { TRACE_SCHEMA, TraceStatements } from './catalog-sqlite-traces.ts';

/** What brings a catalog from one version of the schema to the next; an empty file has version 0. */
const STEPS = [
  `
CREATE TABLE images (
  digest TEXT PRIMARY KEY, platform TEXT NOT NULL, entries INTEGER NOT NULL, bytes INTEGER NOT NULL,
  layers INTEGER NOT NULL, addedAt INTEGER NOT NULL
) STRICT;
CREATE TABLE names (
  name TEXT NOT NULL, platform TEXT NOT NULL, digest TEXT NOT NULL REFERENCES images(digest),
  PRIMARY KEY (name, platform)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_digest ON names(digest);
CREATE TABLE contents (digest BLOB PRIMARY KEY, images INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE bundles (
  id TEXT PRIMARY KEY, key TEXT UNIQUE, image TEXT NOT NULL, bytes INTEGER NOT NULL,
  headerBytes INTEGER NOT NULL, fresh INTEGER NOT NULL, createdAt INTEGER NOT NULL, usedAt INTEGER NOT NULL
) STRICT;
CREATE INDEX bundles_by_image ON bundles(image);
CREATE TABLE changes (id INTEGER PRIMARY KEY AUTOINCREMENT) STRICT;
`,
  `${TRACE_SCHEMA}
ALTER TABLE bundles ADD COLUMN family TEXT NOT NULL DEFAULT '';
CREATE INDEX bundles_by_family ON bundles(family);
`,
];

let db: DatabaseSync;
const prepared = new Map<string, StatementSync>();

function sql(text: string): StatementSync {
  let statement = prepared.get(text);
  if (statement === undefined) {
    statement = db.prepare(text);
    prepared.set(text, statement);
  }
  return statement;
}

function all<T>(text: string, ...values: SQLInputValue[]): T[] {
  return sql(text).all(...values) as T[];
}

function one<T>(text: string, ...values: SQLInputValue[]): T | undefined {
  return sql(text).get(...values) as T | undefined;
}

function open(path: string): void {
  db = new DatabaseSync(path);
  // Exclusive and set before the first read: the lock is taken now and kept until the process ends,
  // and the log needs no shared memory. FULL: a transaction that has returned outlives a power cut.
  db.exec('PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL');
  db.exec('PRAGMA foreign_keys=ON');
  const { user_version: version } = one<{ user_version: number }>('PRAGMA user_version')!;
  if (version > STEPS.length)
    throw new Error(`${path} was written by a newer version of firstlight`);
  db.exec('BEGIN EXCLUSIVE');
  for (const step of STEPS.slice(version)) db.exec(step);
  db.exec(`PRAGMA user_version=${STEPS.length}; COMMIT`);
}

const NAMED = `SELECT i.*, n.name FROM images i LEFT JOIN names n ON n.digest = i.digest`;

/** null to undefined, and a plain object: what travels between threads is what the interface says. */
function named(row: NamedImage & { name: string | null }): NamedImage {
  return { ...row, name: row.name ?? undefined };
}

function bundle(row: BundleRecord | undefined): BundleRecord | undefined {
  return row === undefined ? undefined : { ...row, fresh: Boolean(row.fresh) };
}

function* digestsIn(contents: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < contents.length; at += 32) yield contents.subarray(at, at + 32);
}

function nameImage(digest: string, name: string): boolean {
  const image = one<{ platform: string }>('SELECT platform FROM images WHERE digest = ?', digest);
  if (image === undefined) return false;
  sql('INSERT OR REPLACE INTO names (name, platform, digest) VALUES (?, ?, ?)').run(
    name,
    image.platform,
    digest,
  );
  return true;
}

function addImage(
  image: ImageRecord,
  contents: Uint8Array,
  name: string,
  first: BundleRecord | undefined,
  ranks: RanksRecord | undefined,
): void {
  const added = sql('INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?)').run(
    image.digest,
    image.platform,
    image.entries,
    image.bytes,
    image.layers,
    image.addedAt,
  );
  if (added.changes === 1) {
    const count = sql(
      'INSERT INTO contents VALUES (?, 1) ON CONFLICT(digest) DO UPDATE SET images = images + 1',
    );
    for (const digest of digestsIn(contents)) count.run(digest);
    if (first !== undefined) addBundle(first);
    if (ranks !== undefined) traces.setRanks(image.digest, ranks);
  }
  nameImage(image.digest, name);
}

function removeImages(
  which: { name: string; platform: string | undefined } | { digest: string },
  contentsOf: ReadonlyMap<string, Uint8Array>,
): Removed {
  let touched: { digest: string }[];
  if ('digest' in which) {
    touched = all('DELETE FROM names WHERE digest = ? RETURNING digest', which.digest);
  } else if (which.platform === undefined) {
    touched = all('DELETE FROM names WHERE name = ? RETURNING digest', which.name);
  } else {
    touched = all(
      'DELETE FROM names WHERE name = ? AND platform = ? RETURNING digest',
      which.name,
      which.platform,
    );
  }
  const removed: Removed = { names: touched.length, images: [], bundles: [] };
  const candidates = new Set(touched.map((row) => row.digest));
  if ('digest' in which) candidates.add(which.digest);
  for (const digest of candidates) {
    if (one('SELECT 1 FROM names WHERE digest = ?', digest) !== undefined) continue;
    if (sql('DELETE FROM images WHERE digest = ?').run(digest).changes === 0) continue;
    const contents = contentsOf.get(digest);
    // The caller looked the names up before; one that moved meanwhile undoes the transaction.
    if (contents === undefined)
      throw new Error(`the names of ${digest} have just changed, try again`);
    const drop = sql('UPDATE contents SET images = images - 1 WHERE digest = ?');
    const forget = sql('DELETE FROM contents WHERE digest = ? AND images <= 0');
    for (const content of digestsIn(contents)) {
      drop.run(content);
      forget.run(content);
    }
    removed.images.push(digest);
    for (const row of all<{ id: string }>(
      'UPDATE bundles SET key = NULL WHERE image = ? RETURNING id',
      digest,
    )) {
      removed.bundles.push(row.id);
    }
  }
  if (removed.images.length > 0) traces.dropUnrelated();
  return removed;
}

function usedContents(contents: Uint8Array): Uint8Array {
  const used = new Uint8Array(contents.length / 32);
  let index = 0;
  for (const digest of digestsIn(contents)) {
    used[index++] = one('SELECT 1 FROM contents WHERE digest = ?', digest) === undefined ? 0 : 1;
  }
  return used;
}

function addBundle(b: BundleRecord): boolean {
  if (one('SELECT 1 FROM images WHERE digest = ?', b.image) === undefined) return false;
  if (b.fresh) sql('UPDATE bundles SET fresh = 0 WHERE image = ?').run(b.image);
  sql('INSERT OR REPLACE INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)').run(
    b.id,
    b.key,
    b.image,
    b.bytes,
    b.headerBytes,
    b.fresh ? 1 : 0,
    b.createdAt,
    b.usedAt,
    b.family,
  );
  return true;
}

const traces = new TraceStatements(sql);

const ids = (rows: { id: string }[]) => rows.map((row) => row.id);

/** Every call of the interface by its name. */
const METHODS: Record<string, (...args: never[]) => unknown> = {
  addImage,
  nameImage,
  removeImages,
  usedContents,
  addBundle,
  listImages: () =>
    all<NamedImage & { name: string | null }>(
      `${NAMED} ORDER BY n.name IS NULL, n.name, i.platform, i.digest`,
    ).map(named),
  findByName: (name: string) =>
    all<NamedImage & { name: string | null }>(
      `${NAMED} WHERE n.name = ? ORDER BY i.platform`,
      name,
    ).map(named),
  findByDigest: (digest: string) =>
    all<NamedImage & { name: string | null }>(
      `${NAMED} WHERE i.digest = ? ORDER BY n.name LIMIT 1`,
      digest,
    ).map(named)[0],
  findBundle: (key: string) => bundle(one('SELECT * FROM bundles WHERE key = ?', key)),
  bundleById: (id: string) => bundle(one('SELECT * FROM bundles WHERE id = ?', id)),
  freshBundle: (image: string) =>
    bundle(
      one(
        `SELECT * FROM bundles WHERE image = ? AND fresh = 1 AND key IS NOT NULL
         ORDER BY createdAt DESC LIMIT 1`,
        image,
      ),
    ),
  newestOfFamily: (family: string) =>
    bundle(
      one(
        `SELECT * FROM bundles WHERE family = ? AND key IS NOT NULL
         ORDER BY createdAt DESC, rowid DESC LIMIT 1`,
        family,
      ),
    ),
  touchBundle: (id: string, usedAt: number) => {
    sql('UPDATE bundles SET usedAt = ? WHERE id = ?').run(usedAt, id);
  },
  retireBundle: (id: string) => {
    sql('UPDATE bundles SET key = NULL WHERE id = ?').run(id);
  },
  dropBundle: (id: string) =>
    sql('DELETE FROM bundles WHERE id = ? AND key IS NULL').run(id).changes === 1,
  listBundles: () =>
    all<BundleRecord>('SELECT * FROM bundles WHERE key IS NOT NULL ORDER BY usedAt, id').map(
      (row) => bundle(row),
    ),
  bundleIds: () => ids(all('SELECT id FROM bundles')),
  retiredBundles: () => ids(all('SELECT id FROM bundles WHERE key IS NULL')),
  openChange: () => Number(sql('INSERT INTO changes DEFAULT VALUES').run().lastInsertRowid),
  closeChange: (id: number) => {
    sql('DELETE FROM changes WHERE id = ?').run(id);
  },
  openChanges: () => one<{ n: number }>('SELECT count(*) AS n FROM changes')!.n,
  clearChanges: () => {
    sql('DELETE FROM changes').run();
  },
  addTrace: traces.add.bind(traces),
  listTraces: traces.list.bind(traces),
  traceData: traces.data.bind(traces),
  removeTrace: traces.remove.bind(traces),
  ranksOf: traces.ranksOf.bind(traces),
  noteReorders: traces.note.bind(traces),
  nextReorder: traces.nextReorder.bind(traces),
  isReordering: traces.isReordering.bind(traces),
  orderOf: traces.orderOf.bind(traces),
  setRanks: traces.setRanks.bind(traces),
  dropReorder: traces.dropReorder.bind(traces),
  ping: () => {
    one('SELECT count(*) FROM sqlite_schema');
  },
};

function run(call: CatalogCall): unknown {
  if (call.method === 'open') return open(call.args[0] as string);
  if (call.method === 'close') return db.close();
  const method = METHODS[call.method];
  if (method === undefined) throw new Error(`no method ${call.method}`);
  db.exec('BEGIN IMMEDIATE');
  try {
    const value = method(...(call.args as never[]));
    db.exec('COMMIT');
    return value;
  } catch (error) {
    // SQLite has ended the transaction itself after some errors (a full disk); then there is nothing to undo.
    if (db.isTransaction) db.exec('ROLLBACK');
    throw error;
  }
}

parentPort!.on('message', (call: CatalogCall) => {
  let answer: CatalogAnswer;
  try {
    answer = { id: call.id, value: run(call) };
  } catch (thrown) {
    const error = thrown as Error & { errcode?: number };
    // The low byte of an extended result code is the primary one.
    const code = error.errcode === undefined ? undefined : error.errcode & 0xff;
    answer = { id: call.id, error: { message: error.message, code } };
  }
  parentPort!.postMessage(answer);
});
