// The part of the SQLite catalog that holds traces, the orders made of them, and the notes of images
// whose order has to be looked at again. Runs in the catalog's thread; a call is a transaction
// there.
import type { SQLInputValue, StatementSync } from 'node:sqlite';
import type { RanksRecord, Reorder, TraceBounds, TraceRecord } from './catalog.ts';

// The texts stand apart from the rows, so that a list of traces does not read them.
export const TRACE_SCHEMA = `
CREATE TABLE traces (
  id TEXT PRIMARY KEY, "group" TEXT NOT NULL, image TEXT NOT NULL, name TEXT, digest TEXT, platform TEXT,
  startedAt INTEGER NOT NULL, durationMs INTEGER NOT NULL, files INTEGER NOT NULL, bytes INTEGER NOT NULL,
  receivedAt INTEGER NOT NULL
) STRICT;
CREATE TABLE trace_data (
  id TEXT PRIMARY KEY REFERENCES traces(id) ON DELETE CASCADE, data BLOB NOT NULL
) STRICT;
CREATE TABLE ranks (
  image TEXT PRIMARY KEY REFERENCES images(digest) ON DELETE CASCADE, version TEXT NOT NULL,
  data BLOB NOT NULL, count INTEGER NOT NULL, runs INTEGER NOT NULL
) STRICT;
CREATE TABLE reorders (
  image TEXT PRIMARY KEY REFERENCES images(digest) ON DELETE CASCADE, mark INTEGER NOT NULL
) STRICT;
`;

type Nullable<T> = {
  [K in keyof T]: Exclude<T[K], undefined> | (undefined extends T[K] ? null : never);
};

/** What stands before the tag; names are in normal form, so there is one. */
function repositoryOf(name: string): string {
  return name.slice(0, name.lastIndexOf(':'));
}

/** Statements on traces, ranks and reorders; `sql` prepares each once. */
export class TraceStatements {
  readonly #sql: (text: string) => StatementSync;

  constructor(sql: (text: string) => StatementSync) {
    this.#sql = sql;
  }

  #all<T>(text: string, ...values: SQLInputValue[]): T[] {
    return this.#sql(text).all(...values) as T[];
  }

  #one<T>(text: string, ...values: SQLInputValue[]): T | undefined {
    return this.#sql(text).get(...values) as T | undefined;
  }

  add(t: TraceRecord, data: Uint8Array, images: readonly string[], bounds: TraceBounds): boolean {
    const added = this.#sql(
      'INSERT OR IGNORE INTO traces VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
    ).run(
      t.id,
      t.group,
      t.image,
      t.name ?? null,
      t.digest ?? null,
      t.platform ?? null,
      t.startedAt,
      t.durationMs,
      t.files,
      t.bytes,
      t.receivedAt,
    );
    if (added.changes === 0) return false;
    this.#sql('INSERT INTO trace_data VALUES (?, ?)').run(t.id, data);
    this.#bound(t, bounds);
    this.note(images);
    return true;
  }

  /**
   * Drops the oldest traces of the image, then of all, beyond the bounds; never the one just added. Of an image the
   * runs that began last stay, in whatever order they are reported; a start in the future counts as now.
   */
  #bound(added: TraceRecord, { tracesPerImage, tracesMaxBytes }: TraceBounds): void {
    this.#sql(
      `DELETE FROM traces WHERE id IN (
         SELECT id FROM traces WHERE coalesce(digest, name, image) = coalesce(?, ?, ?) AND id <> ?
         ORDER BY min(startedAt, receivedAt) DESC, rowid DESC LIMIT -1 OFFSET ?)`,
    ).run(
      added.digest ?? null,
      added.name ?? null,
      added.image,
      added.id,
      Math.max(0, tracesPerImage - 1),
    );
    this.#sql(
      `DELETE FROM traces WHERE id <> ? AND id IN (
         SELECT id FROM (
           SELECT t.id, sum(length(d.data)) OVER (ORDER BY t.receivedAt DESC, t.rowid DESC) AS total
           FROM traces t JOIN trace_data d USING (id))
         WHERE total > ?)`,
    ).run(added.id, tracesMaxBytes);
  }

  list(): TraceRecord[] {
    return this.#all<Nullable<TraceRecord>>(
      'SELECT * FROM traces ORDER BY receivedAt DESC, rowid DESC',
    ).map((row) => ({
      ...row,
      name: row.name ?? undefined,
      digest: row.digest ?? undefined,
      platform: row.platform ?? undefined,
    }));
  }

  data(ids: readonly string[]): (Uint8Array | undefined)[] {
    return ids.map(
      (id) => this.#one<{ data: Uint8Array }>('SELECT data FROM trace_data WHERE id = ?', id)?.data,
    );
  }

  remove(id: string, images: readonly string[]): boolean {
    if (this.#sql('DELETE FROM traces WHERE id = ?').run(id).changes === 0) return false;
    this.note(images);
    return true;
  }

  /** Drops the traces of images that are not there and of which there is no other version. */
  dropUnrelated(): void {
    const names = this.#all<{ name: string }>('SELECT DISTINCT name FROM names');
    const repositories = new Set(names.map(({ name }) => repositoryOf(name)));
    const rows = this.#all<{ id: string; name: string | null }>(
      'SELECT id, name FROM traces WHERE digest IS NULL OR digest NOT IN (SELECT digest FROM images)',
    );
    for (const { id, name } of rows) {
      if (name !== null && repositories.has(repositoryOf(name))) continue;
      this.#sql('DELETE FROM traces WHERE id = ?').run(id);
    }
  }

  setRanks(image: string, ranks: RanksRecord | undefined): void {
    if (ranks === undefined) {
      this.#sql('DELETE FROM ranks WHERE image = ?').run(image);
      return;
    }
    const { version, data, count, runs } = ranks;
    this.#sql(
      'INSERT OR REPLACE INTO ranks SELECT digest, ?, ?, ?, ? FROM images WHERE digest = ?',
    ).run(version, data, count, runs, image);
  }

  orderOf(image: string): string {
    const row = this.#one<{ version: string }>('SELECT version FROM ranks WHERE image = ?', image);
    return row?.version ?? '';
  }

  ranksOf(image: string): RanksRecord | undefined {
    const row = this.#one<RanksRecord>(
      'SELECT version, data, count, runs FROM ranks WHERE image = ?',
      image,
    );
    return row === undefined ? undefined : { ...row };
  }

  note(images: readonly string[]): void {
    for (const image of images) {
      this.#sql(
        `INSERT OR REPLACE INTO reorders
         SELECT digest, (SELECT coalesce(max(mark), 0) + 1 FROM reorders) FROM images WHERE digest = ?`,
      ).run(image);
    }
  }

  nextReorder(): Reorder | undefined {
    const row = this.#one<Reorder>('SELECT image, mark FROM reorders ORDER BY mark LIMIT 1');
    return row === undefined ? undefined : { ...row };
  }

  isReordering(image: string): boolean {
    return this.#one('SELECT 1 FROM reorders WHERE image = ?', image) !== undefined;
  }

  dropReorder({ image, mark }: Reorder): void {
    this.#sql('DELETE FROM reorders WHERE image = ? AND mark = ?').run(image, mark);
  }
}
