// The OCI runtime as a program: which one, and one container's life through it.

import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { constants as osConstants } from 'node:os';
import { delimiter, join } from 'node:path';
import { FirstlightError } from '../../errors/errors.ts';

/** Tried in this order where none is named. */
const RUNTIMES = ['runc', 'crun'];
/** Where runtimes live beside PATH: a user's PATH often lacks the sbin directories. */
const MORE_PATH = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

function executable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    // Not there, or not for us: either way it is not the one.
    return false;
  }
}

/** Absolute path of a program, or undefined. */
export function findProgram(
  name: string,
  path: string = process.env.PATH ?? '',
): string | undefined {
  if (name.includes('/')) return executable(name) ? name : undefined;
  const directories = [...path.split(delimiter).filter((d) => d !== ''), ...MORE_PATH];
  return directories.map((directory) => join(directory, name)).find(executable);
}

/**
 * The runtime to use.
 * @param wanted  name or path that the user gave
 * @throws FirstlightError `unsupported` where there is none
 */
export function findRuntime(wanted: string | undefined, path?: string): string {
  const names = wanted === undefined ? RUNTIMES : [wanted];
  for (const name of names) {
    const found = findProgram(name, path);
    if (found !== undefined) return found;
  }
  throw new FirstlightError('unsupported', `no OCI runtime found (${names.join(', ')})`, {
    hint:
      wanted === undefined
        ? 'install one, for example: apt-get install runc'
        : 'install it, or give another --runtime',
  });
}

/** A container to be run in the foreground. */
export interface ContainerOptions {
  runtime: string;
  /** Directory of the runtime's own state. */
  stateDir: string;
  bundle: string;
  id: string;
  terminal: boolean;
}

/** The runtime's program and its global options. */
export function runtimeCommand(options: Pick<ContainerOptions, 'runtime' | 'stateDir'>): string[] {
  return [options.runtime, '--root', options.stateDir];
}

const FORWARDED = [
  'SIGHUP',
  'SIGINT',
  'SIGQUIT',
  'SIGTERM',
  'SIGUSR1',
  'SIGUSR2',
  'SIGCONT',
] as const;
/** This many requests to end, and the container is killed: its first process may ignore the signal. */
const PATIENCE = 3;

/** One container, running in the foreground. */
export class Container {
  readonly #options: ContainerOptions;
  readonly #child: ChildProcess;
  readonly #handlers = new Map<NodeJS.Signals, () => void>();
  #asked = 0;
  /** Exit code of the container, 128 + N where signal N ended it. */
  readonly exited: Promise<number>;

  constructor(options: ContainerOptions) {
    this.#options = options;
    const [program = '', ...global] = runtimeCommand(options);
    const args = [
      ...global,
      '--log',
      join(options.bundle, 'log.json'),
      '--log-format',
      'json',
      'run',
      '--bundle',
      options.bundle,
      options.id,
    ];
    this.#child = spawn(program, args, {
      stdio: 'inherit',
      // Without a terminal of its own a container would get a Ctrl-C twice, from the terminal and
      // from us: a session of its own leaves ours. With one, the runtime needs our terminal.
      detached: !options.terminal,
    });
    this.exited = new Promise((resolve, reject) => {
      this.#child.once('error', reject);
      this.#child.once('exit', (code, signal) => {
        this.#release();
        resolve(code ?? 128 + (signal === null ? 0 : osConstants.signals[signal]));
      });
    });
    for (const signal of FORWARDED) {
      const handler = () => this.#forward(signal);
      this.#handlers.set(signal, handler);
      process.on(signal, handler);
    }
  }

  #forward(signal: NodeJS.Signals): void {
    if (signal === 'SIGINT' || signal === 'SIGTERM') this.#asked++;
    if (this.#asked >= PATIENCE) {
      void this.kill();
      return;
    }
    this.#child.kill(signal);
  }

  #release(): void {
    for (const [signal, handler] of this.#handlers) process.off(signal, handler);
    this.#handlers.clear();
  }

  /** Kills every process of the container. */
  async kill(): Promise<void> {
    await runQuietly([...runtimeCommand(this.#options), 'kill', this.#options.id, 'KILL']);
  }

  /** Removes what the runtime keeps of the container; nothing where it is gone already. */
  async remove(): Promise<void> {
    await runQuietly([...runtimeCommand(this.#options), 'delete', '--force', this.#options.id]);
  }

  /** The runtime's own complaint, where it could not start the container. */
  async failure(): Promise<string | undefined> {
    return lastError(
      await readFile(join(this.#options.bundle, 'log.json'), 'utf8').catch(() => ''),
    );
  }
}

/** The last message of level `error` or `fatal` in a runtime's JSON log. */
export function lastError(log: string): string | undefined {
  const lines = log.split('\n').reverse();
  for (const line of lines) {
    try {
      const entry = JSON.parse(line) as { level?: string; msg?: string };
      if (entry.level === 'error' || entry.level === 'fatal') return entry.msg;
    } catch {
      // Not every line of every runtime is JSON; those say nothing we look for.
    }
  }
  return undefined;
}

/** Exit code for a container that never started, as shells and docker have it. */
export function startFailureCode(message: string): number {
  if (/no such file or directory|not found/i.test(message)) return 127;
  if (/permission denied|exec format error|is a directory/i.test(message)) return 126;
  return 125;
}

/** Runs a program for its effect; its failure means that there was nothing to do. */
function runQuietly(command: string[]): Promise<void> {
  const [program = '', ...args] = command;
  return new Promise((resolve) => {
    const child = spawn(program, args, { stdio: 'ignore' });
    child.once('error', () => resolve());
    child.once('exit', () => resolve());
  });
}
