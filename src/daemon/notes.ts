// Notes of what is mounted, a file each, so that the next daemon can clear away what a killed one has
// left: dead mounts, and the containers of clients that nobody watches any more. They stand in the
// runtime directory: after a reboot there is nothing to clear away.
import { spawn } from 'node:child_process';
import { mkdir, readdir, readFile, rename, rm, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as v from 'valibot';
import type { Logger } from '../log/log.ts';
import { native } from '../native/index.ts';
import { dropSnapshot, snapshotDirectories } from '../tree/snapshot.ts';
import type { Lease } from './control.ts';
import { FS_TYPE, mountThere } from './dead-mount.ts';
import { mountAt, parseMountInfo } from './mountinfo.ts';

/** A runtime that has not killed a container within this time is left alone. */
const KILL_TIMEOUT_MS = 20_000;
const MNT_DETACH = 2;

const NOTE = v.object({
  id: v.pipe(v.string(), v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]*$/)),
  directory: v.pipe(v.string(), v.startsWith('/')),
  temporary: v.boolean(),
  lease: v.exactOptional(
    v.object({
      container: v.exactOptional(v.object({ command: v.array(v.string()), id: v.string() })),
      bundle: v.exactOptional(v.pipe(v.string(), v.startsWith('/'))),
    }),
  ),
});

/** One mount, as far as clearing it away needs. */
export interface MountNote {
  id: string;
  directory: string;
  /** The directory was made for the mount, and goes with it. */
  temporary: boolean;
  lease?: Lease;
}

/** Runs a program; resolves to its exit code, -1 where it could not be started or did not end. */
function runProgram(command: string[]): Promise<number> {
  const [program = '', ...args] = command;
  return new Promise((resolve) => {
    const child = spawn(program, args, { stdio: 'ignore', cwd: '/' });
    const timer = setTimeout(() => child.kill('SIGKILL'), KILL_TIMEOUT_MS);
    const end = (code: number) => {
      clearTimeout(timer);
      resolve(code);
    };
    child.once('error', () => end(-1));
    child.once('exit', (code) => end(code ?? -1));
  });
}

/** Detaches every mount of ours at a directory whose daemon is gone (ENOTCONN). */
export async function detachDead(directory: string, log: Logger): Promise<void> {
  for (;;) {
    const mounts = parseMountInfo(await readFile('/proc/self/mountinfo', 'utf8'));
    if (mountAt(mounts, directory)?.fsType !== FS_TYPE) return;
    log.info({ directory }, 'a dead mount is detached');
    await native().umount(directory, MNT_DETACH);
  }
}

/** The notes of one root. */
export class Notes {
  readonly #directory: string;
  readonly #snapshots: string;
  readonly #log: Logger;

  /**
   * @param directory  where the notes stand
   * @param snapshots  the store's snapshots: a directory for each writable mount, by the mount's id
   */
  constructor(directory: string, snapshots: string, log: Logger) {
    this.#directory = directory;
    this.#snapshots = snapshots;
    this.#log = log;
  }

  #file(id: string): string {
    return join(this.#directory, `${id}.json`);
  }

  /** Writes a note, before the mount is made. */
  async add(note: MountNote): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const file = this.#file(note.id);
    await writeFile(`${file}.new`, JSON.stringify(note), { mode: 0o600 });
    await rename(`${file}.new`, file);
  }

  /** Kills and deletes a lease's container. Nothing is an error here: what is gone is gone. */
  async endContainer({ lease }: MountNote): Promise<void> {
    if (lease?.container === undefined) return;
    const { command, id } = lease.container;
    const code = await runProgram([...command, 'delete', '--force', id]);
    if (code !== 0) this.#log.debug({ container: id, code }, 'no container to delete');
  }

  /** After the unmount: removes the lease's directory, the mount point where it is ours, and the note. */
  async remove(note: MountNote): Promise<void> {
    const { id, directory, temporary, lease } = note;
    if (lease?.bundle !== undefined) await rm(lease.bundle, { recursive: true, force: true });
    if (temporary) {
      await rmdir(directory).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') this.#log.warn({ err: error }, 'a mount point stays');
      });
    }
    await rm(this.#file(id), { force: true });
  }

  /**
   * Clears away what every noted mount has left. What was written to a mount that no client held is
   * the user's and stays in its snapshot; `gc` removes it.
   */
  async clearAll(): Promise<void> {
    const names = await readdir(this.#directory).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return [];
      throw error;
    });
    for (const name of names) {
      const path = join(this.#directory, name);
      try {
        await this.#clear(v.parse(NOTE, JSON.parse(await readFile(path, 'utf8'))));
      } catch (error) {
        this.#log.warn({ err: error, note: name }, 'what a killed daemon left was not all cleared');
        await rm(path, { force: true });
      }
    }
  }

  async #clear(note: MountNote): Promise<void> {
    const { id, directory, lease } = note;
    this.#log.info({ id, directory }, 'clearing away what a killed daemon has left');
    await this.endContainer(note);
    const there = await mountThere(directory, this.#snapshots);
    if (there?.ours === true && !there.dead) {
      // What it has written is not taken from under it.
      this.#log.warn({ id, directory }, 'a mount stays: its session has neither ended nor answers');
      return;
    }
    if (there?.dead === true) await detachDead(directory, this.#log);
    if (lease !== undefined) {
      await dropSnapshot(snapshotDirectories(this.#snapshots, id));
    }
    await this.remove(note);
  }
}
