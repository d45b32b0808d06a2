// What every command gets: settings, where to print, and the signal that ends it.
import type { Settings } from './settings.ts';

export interface Context {
  settings: Settings;
  json: boolean;
  quiet: boolean;
  /** Aborted by SIGINT, SIGTERM and SIGHUP; its reason is an {@link Interrupted}. */
  signal: AbortSignal;
  /** From here on signals are the command's own affair (`run` hands them to the container). */
  releaseSignals(): void;
  /** Results: one line to stdout. */
  print(line: string): void;
  /** A value for programs: one line of JSON to stdout. */
  printJson(value: unknown): void;
  /** Remarks for people: one line to stderr, unless --quiet or --json. */
  note(line: string): void;
}

/** The command was ended by a signal; its exit code is 128 + the signal's number. */
export class Interrupted extends Error {
  readonly exitCode: number;

  constructor(signal: 'SIGINT' | 'SIGTERM' | 'SIGHUP') {
    super(`ended by ${signal}`);
    this.name = 'Interrupted';
    this.exitCode = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal];
  }
}
