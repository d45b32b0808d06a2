// The records of snapshots in SQLite: what there is, who stands on whom, and the rules that containerd's
// interface sets for changing it. Every public method but `close` is one transaction. What does not live
// here: the thread it runs in (records-worker.ts), files below a snapshot's directory, mounts.
//
// Calls are synchronous, so this runs in a worker thread only. A snapshot's directory is moved into place
// inside the transaction that makes its row: a crash leaves a directory without a row, which the next start
// removes, and never a row without its directory.
import { closeSync, existsSync, fsyncSync, openSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { FirstlightError } from '../errors/errors.ts';
import {
  KIND,
  type Kind,
  type Labels,
  type LazyLayer,
  type Snapshot,
  type Usage,
} from './types.ts';

const VERSION = 1;
const SCHEMA = `
  CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    parent INTEGER REFERENCES snapshots (id) ON DELETE RESTRICT,
    kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    labels TEXT NOT NULL,
    lazy_image TEXT,
    lazy_ref TEXT,
    lazy_layer TEXT,
    lazy_tree TEXT,
    fallback TEXT
  ) STRICT;
  CREATE INDEX snapshots_parent ON snapshots (parent);
`;
const COLUMNS = `s.id, s.key, s.namespace, s.parent AS parentId, coalesce(p.key, '') AS parent, s.kind,
  s.created_at, s.updated_at, s.bytes, s.inodes, s.labels, s.lazy_image, s.lazy_ref, s.lazy_layer,
  s.lazy_tree, s.fallback`;
const FROM = 'FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent';

type Row = Record<string, string | number | null>;

/** A snapshot that is to be made, with a directory that stands ready beside its place. */
export interface NewSnapshot {
  key: string;
  namespace: string;
  /** Key of a committed snapshot; empty for none. */
  parent: string;
  kind: typeof KIND.Active | typeof KIND.View;
  labels: Labels;
  fallback: string | null;
  /** Directory that becomes the snapshot's. */
  aside: string;
}

/** A committed snapshot without a directory. */
export interface NewLazy {
  name: string;
  namespace: string;
  parent: string;
  labels: Labels;
  lazy: LazyLayer;
  usage: Usage;
}

/** What a removal leaves to be cleared away. */
export interface Removed {
  id: number;
  /** Digests of images that no snapshot uses any more. */
  unused: string[];
}

function snapshotOf(row: Row): Snapshot {
  const { lazy_image: image, lazy_ref: ref, lazy_layer: layerDigest, lazy_tree: tree } = row;
  const text = (value: unknown) => (value === null ? null : String(value));
  return {
    id: Number(row.id),
    key: String(row.key),
    namespace: String(row.namespace),
    parentId: row.parentId === null ? null : Number(row.parentId),
    parent: String(row.parent),
    kind: Number(row.kind) as Kind,
    createdAt: Number(row.created_at),
    updatedAt: Number(row.updated_at),
    labels: JSON.parse(String(row.labels)) as Labels,
    usage: { bytes: Number(row.bytes), inodes: Number(row.inodes) },
    lazy:
      image === null || image === undefined
        ? null
        : {
            image: String(image),
            ref: text(ref),
            layerDigest: text(layerDigest),
            tree: text(tree),
          },
    fallback: text(row.fallback),
  };
}

function missing(key: string, what = 'snapshot'): FirstlightError {
  return new FirstlightError('not-found', `${what} ${key} does not exist`);
}

function taken(key: string): FirstlightError {
  return new FirstlightError('exists', `snapshot ${key} exists already`);
}

/** Makes the names in a directory durable. */
function syncDirectory(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

export class RecordsDb {
  readonly #db: DatabaseSync;
  readonly #directory: string;
  readonly #statements = new Map<string, StatementSync>();

  /**
   * @param path       the database
   * @param directory  holds a directory for each snapshot, named by its id
   * @throws FirstlightError `unsupported` for the layout of another version
   */
  constructor(path: string, directory: string) {
    this.#db = new DatabaseSync(path);
    this.#directory = directory;
    try {
      for (const pragma of [
        'locking_mode = EXCLUSIVE',
        'journal_mode = WAL',
        'synchronous = FULL',
        'foreign_keys = ON',
      ]) {
        this.#db.exec(`PRAGMA ${pragma}`);
      }
      this.#transaction(() => {
        const version = Number(this.#db.prepare('PRAGMA user_version').get()?.user_version);
        if (version === VERSION) return;
        if (version !== 0) {
          throw new FirstlightError(
            'unsupported',
            `${path} has layout ${version}, not ${VERSION}`,
            {
              hint: 'use the version of firstlight that made it, or another --root',
            },
          );
        }
        this.#db.exec(SCHEMA);
        this.#db.exec(`PRAGMA user_version = ${VERSION}`);
      });
    } catch (error) {
      this.#db.close();
      throw error;
    }
  }

  #sql(text: string): StatementSync {
    let statement = this.#statements.get(text);
    if (statement === undefined) {
      statement = this.#db.prepare(text);
      this.#statements.set(text, statement);
    }
    return statement;
  }

  #transaction<T>(body: () => T): T {
    this.#db.exec('BEGIN IMMEDIATE');
    try {
      const result = body();
      this.#db.exec('COMMIT');
      return result;
    } catch (error) {
      // SQLite has ended the transaction itself after some errors, such as a full disk.
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
      throw error;
    }
  }

  #find(key: string): Snapshot | undefined {
    const row = this.#sql(`SELECT ${COLUMNS} ${FROM} WHERE s.key = ?`).get(key) as Row | undefined;
    return row === undefined ? undefined : snapshotOf(row);
  }

  #get(key: string): Snapshot {
    const snapshot = this.#find(key);
    if (snapshot === undefined) throw missing(key);
    return snapshot;
  }

  /** The parent that a new snapshot may stand on; undefined for none. */
  #parent(key: string): Snapshot | undefined {
    if (key === '') return undefined;
    const parent = this.#find(key);
    if (parent === undefined) throw missing(key, 'parent snapshot');
    if (parent.kind !== KIND.Committed) {
      throw new FirstlightError('usage', `parent ${key} is not a committed snapshot`);
    }
    return parent;
  }

  #chainOf(id: number): Snapshot[] {
    const rows = this.#sql(
      `WITH RECURSIVE chain (id, parent, depth) AS (
         SELECT id, parent, 0 FROM snapshots WHERE id = ?
         UNION ALL
         SELECT n.id, n.parent, c.depth + 1 FROM snapshots n JOIN chain c ON n.id = c.parent)
       SELECT ${COLUMNS} ${FROM} JOIN chain c ON c.id = s.id ORDER BY c.depth`,
    ).all(id) as Row[];
    return rows.map(snapshotOf);
  }

  /** A snapshot and those it stands on, itself first. @throws FirstlightError `not-found` */
  chain(key: string): Snapshot[] {
    return this.#transaction(() => this.#chainOf(this.#get(key).id));
  }

  /** @throws FirstlightError `not-found` */
  stat(key: string): Snapshot {
    return this.#get(key);
  }

  /** Every snapshot, oldest first. */
  list(): Snapshot[] {
    return (this.#sql(`SELECT ${COLUMNS} ${FROM} ORDER BY s.id`).all() as Row[]).map(snapshotOf);
  }

  /**
   * Makes an active snapshot or a view.
   * @returns its chain, itself first
   * @throws FirstlightError `exists`; `not-found` for the parent; `usage` for one that is not committed
   */
  create(snapshot: NewSnapshot): Snapshot[] {
    let placed: string | undefined;
    try {
      return this.#transaction(() => {
        const { key, namespace, kind, labels, fallback, aside } = snapshot;
        if (this.#find(key) !== undefined) throw taken(key);
        const parent = this.#parent(snapshot.parent);
        const id = this.#insert({ key, namespace, parent, kind, labels, fallback });
        const path = join(this.#directory, String(id));
        renameSync(aside, path);
        placed = path;
        syncDirectory(this.#directory);
        return this.#chainOf(id);
      });
    } catch (error) {
      // Back to where its maker removes it.
      if (placed !== undefined && existsSync(placed)) renameSync(placed, snapshot.aside);
      throw error;
    }
  }

  /**
   * Makes a committed snapshot whose tree is to come.
   * @throws FirstlightError `exists`; `not-found` for the parent
   */
  createLazy({ name, namespace, parent: parentKey, labels, lazy, usage }: NewLazy): Snapshot {
    return this.#transaction(() => {
      if (this.#find(name) !== undefined) throw taken(name);
      const parent = this.#parent(parentKey);
      const kind = KIND.Committed;
      const id = this.#insert({ key: name, namespace, parent, kind, labels, fallback: null });
      this.#sql(
        `UPDATE snapshots SET lazy_image = ?, lazy_ref = ?, lazy_layer = ?, lazy_tree = ?, bytes = ?, inodes = ?
         WHERE id = ?`,
      ).run(lazy.image, lazy.ref, lazy.layerDigest, lazy.tree, usage.bytes, usage.inodes, id);
      return this.#get(name);
    });
  }

  #insert(row: {
    key: string;
    namespace: string;
    parent: Snapshot | undefined;
    kind: Kind;
    labels: Labels;
    fallback: string | null;
  }): number {
    const now = Date.now();
    const done = this.#sql(
      `INSERT INTO snapshots (key, namespace, parent, kind, created_at, updated_at, labels, fallback)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
    ).run(
      row.key,
      row.namespace,
      row.parent?.id ?? null,
      row.kind,
      now,
      now,
      JSON.stringify(row.labels),
      row.fallback,
    );
    return Number(done.lastInsertRowid);
  }

  /**
   * Turns an active snapshot into a committed one of another name.
   * @param labels  its labels from now on; undefined: those it had
   * @throws FirstlightError `not-found`; `exists` for the name; `busy` where it is not active
   */
  commit(key: string, name: string, labels: Labels | undefined, usage: Usage): Snapshot {
    return this.#transaction(() => {
      const snapshot = this.#get(key);
      if (this.#find(name) !== undefined) throw taken(name);
      if (snapshot.kind !== KIND.Active) {
        throw new FirstlightError('busy', `snapshot ${key} is not active`);
      }
      const now = Date.now();
      this.#sql(
        `UPDATE snapshots SET key = ?, kind = ?, created_at = ?, updated_at = ?, labels = ?, bytes = ?, inodes = ?
         WHERE id = ?`,
      ).run(
        name,
        KIND.Committed,
        now,
        now,
        JSON.stringify(labels ?? snapshot.labels),
        usage.bytes,
        usage.inodes,
        snapshot.id,
      );
      return this.#get(name);
    });
  }

  /** Changes labels: those in `set` get values, or go where undefined. @throws FirstlightError `not-found` */
  setLabels(
    key: string,
    change: { replace: Labels } | { set: Record<string, string | undefined> },
  ) {
    return this.#transaction(() => {
      const snapshot = this.#get(key);
      const labels = 'replace' in change ? change.replace : { ...snapshot.labels, ...change.set };
      // JSON leaves out what is undefined: those labels are gone.
      this.#sql('UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?').run(
        JSON.stringify(labels),
        Date.now(),
        snapshot.id,
      );
      return this.#get(key);
    });
  }

  /** Notes which image of the store has the tree of a lazy snapshot. */
  setTree(id: number, tree: string): void {
    this.#transaction(() => {
      this.#sql('UPDATE snapshots SET lazy_tree = ? WHERE id = ?').run(tree, id);
    });
  }

  /**
   * Removes a snapshot.
   * @throws FirstlightError `not-found`; `busy` where others stand on it
   */
  remove(key: string): Removed {
    return this.#transaction(() => {
      const snapshot = this.#get(key);
      const child = this.#sql('SELECT key FROM snapshots WHERE parent = ? LIMIT 1').get(
        snapshot.id,
      );
      if (child !== undefined) {
        throw new FirstlightError('busy', `snapshot ${key} has children, such as ${child.key}`, {
          hint: 'remove those first',
        });
      }
      this.#sql('DELETE FROM snapshots WHERE id = ?').run(snapshot.id);
      const { lazy } = snapshot;
      const digests = lazy === null ? [] : [...new Set([lazy.image, lazy.tree ?? lazy.image])];
      return { id: snapshot.id, unused: digests.filter((digest) => !this.#uses(digest)) };
    });
  }

  #uses(digest: string): boolean {
    const sql = 'SELECT 1 FROM snapshots WHERE lazy_image = ? OR lazy_tree = ? LIMIT 1';
    return this.#sql(sql).get(digest, digest) !== undefined;
  }

  /** True where an active snapshot or a view stands on a lazy one, at whatever distance. */
  isMounted(tree: string): boolean {
    return (
      this.#sql(
        `WITH RECURSIVE above (id, kind) AS (
           SELECT id, kind FROM snapshots WHERE lazy_tree = ?
           UNION
           SELECT n.id, n.kind FROM snapshots n JOIN above a ON n.parent = a.id)
         SELECT 1 FROM above WHERE kind <> ? LIMIT 1`,
      ).get(tree, KIND.Committed) !== undefined
    );
  }

  close(): void {
    this.#db.close();
  }
}
