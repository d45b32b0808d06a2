// The store's database (SQLite): which names mean which image, when an image was last used, and
// which ones the user keeps. What does not live here: anything that can be had from the images'
// own directories; whether one is complete stands in its `state` file alone.
//
// The calls are synchronous, as Node's SQLite is: each touches a few rows, once a mount.
import { DatabaseSync } from 'node:sqlite';
import { FirstlightError } from '../errors/errors.ts';

/** One row of `images`. */
export interface ImageRow {
  digest: string;
  platform: string;
  /** ms since 1970. */
  createdAt: number;
  lastUsedAt: number;
  /** Kept by gc although it has no name. */
  pinned: boolean;
}

/** One row of `names`. */
export interface NameRow {
  name: string;
  platform: string;
  digest: string;
}

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS images (
    digest TEXT PRIMARY KEY,
    platform TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0
  ) STRICT;
  CREATE TABLE IF NOT EXISTS names (
    name TEXT NOT NULL,
    platform TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE,
    PRIMARY KEY (name, platform)
  ) STRICT;
  CREATE INDEX IF NOT EXISTS names_digest ON names (digest);
`;
const VERSION = 1;
const SQLITE_BUSY = 5;
const SQLITE_FULL = 13;
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

/** An error of SQLite in the project's terms. */
function translate(error: unknown, path: string): unknown {
  const code = (error as { errcode?: number }).errcode;
  if (code === undefined || !(error instanceof Error)) return error;
  // The low byte is the primary result code, the rest an extended one.
  switch (code & 0xff) {
    case SQLITE_FULL:
      return new FirstlightError('no-space', `cannot write ${path}: ${error.message}`, {
        hint: 'free some space, or put --root on another disk',
        cause: error,
      });
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return new FirstlightError('corrupt', `${path} is damaged: ${error.message}`, {
        hint: 'move the file away: names are restored from the images at the next start',
        cause: error,
      });
    default:
      return error;
  }
}

/** The open database. It locks the store: a second process cannot open the same file. */
export class MetaDb {
  readonly #db: DatabaseSync;
  readonly #path: string;

  /**
   * Opens or creates the database and takes the lock, which the kernel drops when this process
   * ends in whatever way.
   * @throws FirstlightError 'busy' where another process holds it; it names no pid, the caller knows
   */
  constructor(path: string) {
    this.#path = path;
    try {
      this.#db = new DatabaseSync(path, { timeout: 0 });
    } catch (error) {
      throw translate(error, path);
    }
    try {
      this.#db.exec('PRAGMA locking_mode = EXCLUSIVE');
      this.#db.exec('PRAGMA journal_mode = WAL');
      this.#db.exec('PRAGMA synchronous = FULL');
      this.#db.exec('PRAGMA foreign_keys = ON');
      // In exclusive mode the first transaction takes the lock and no later one gives it back.
      this.#db.exec('BEGIN EXCLUSIVE');
      const version = this.#db.prepare('PRAGMA user_version').get()?.user_version;
      if (version !== 0 && version !== VERSION) {
        throw new FirstlightError('unsupported', `${path} has layout ${version}, not ${VERSION}`, {
          hint: 'use the version of firstlight that made this store, or another --root',
        });
      }
      this.#db.exec(SCHEMA);
      this.#db.exec(`PRAGMA user_version = ${VERSION}`);
      this.#db.exec('COMMIT');
    } catch (error) {
      this.#db.close();
      if (((error as { errcode?: number }).errcode ?? 0) % 256 === SQLITE_BUSY) {
        throw new FirstlightError('busy', `${path} is in use by another process`, { cause: error });
      }
      throw translate(error, path);
    }
  }

  /** Runs `body` in one transaction. */
  transaction<T>(body: () => T): T {
    try {
      this.#db.exec('BEGIN IMMEDIATE');
      try {
        const result = body();
        this.#db.exec('COMMIT');
        return result;
      } catch (error) {
        // SQLite has rolled back by itself where the disk was full or failed.
        if (this.#db.isTransaction) this.#db.exec('ROLLBACK');
        throw error;
      }
    } catch (error) {
      throw translate(error, this.#path);
    }
  }

  images(): ImageRow[] {
    return this.#db
      .prepare(
        'SELECT digest, platform, created_at, last_used_at, pinned FROM images ORDER BY created_at, digest',
      )
      .all()
      .map((row) => ({
        digest: String(row.digest),
        platform: String(row.platform),
        createdAt: Number(row.created_at),
        lastUsedAt: Number(row.last_used_at),
        pinned: row.pinned === 1,
      }));
  }

  names(): NameRow[] {
    return this.#db
      .prepare('SELECT name, platform, digest FROM names ORDER BY name, platform')
      .all()
      .map((row) => ({
        name: String(row.name),
        platform: String(row.platform),
        digest: String(row.digest),
      }));
  }

  /** Adds an image row; one that is there stays as it is. */
  addImage(digest: string, platform: string, now: number): void {
    this.#db
      .prepare(
        'INSERT OR IGNORE INTO images (digest, platform, created_at, last_used_at) VALUES (?, ?, ?, ?)',
      )
      .run(digest, platform, now, now);
  }

  /** Removes an image row and its names. */
  removeImage(digest: string): void {
    this.#db.prepare('DELETE FROM images WHERE digest = ?').run(digest);
  }

  /** Makes `name` for `platform` mean `digest`, whatever it meant before. */
  setName(name: string, platform: string, digest: string): void {
    this.#db
      .prepare('INSERT OR REPLACE INTO names (name, platform, digest) VALUES (?, ?, ?)')
      .run(name, platform, digest);
  }

  /** Drops a name of an image; the same name for another platform's image stays. */
  removeName(name: string, digest: string): void {
    this.#db.prepare('DELETE FROM names WHERE name = ? AND digest = ?').run(name, digest);
  }

  touch(digest: string, now: number): void {
    this.#db.prepare('UPDATE images SET last_used_at = ? WHERE digest = ?').run(now, digest);
  }

  setPinned(digest: string, pinned: boolean): void {
    this.#db.prepare('UPDATE images SET pinned = ? WHERE digest = ?').run(pinned ? 1 : 0, digest);
  }

  /** Closes the database and gives the lock back. */
  close(): void {
    this.#db.close();
  }
}
