// The one error type of the project, and the only place that turns one into an exit code, an HTTP
// status or an errno. What does not live here: wording for a person, which stands where it is thrown.
import { constants } from 'node:os';

/** Exit code of the command line and HTTP status of the servers, for each kind of error. */
const KINDS = {
  internal: { exit: 1, status: 500 },
  usage: { exit: 2, status: 400 },
  'not-found': { exit: 3, status: 404 },
  unreachable: { exit: 4, status: 502 },
  permission: { exit: 5, status: 403 },
  busy: { exit: 6, status: 409 },
  'no-space': { exit: 7, status: 507 },
  platform: { exit: 8, status: 404 },
  corrupt: { exit: 9, status: 422 },
  unauthorized: { exit: 10, status: 401 },
  timeout: { exit: 11, status: 504 },
  unsupported: { exit: 12, status: 501 },
  exists: { exit: 13, status: 409 },
} as const;

/** What went wrong, in the project's own terms. docs/EXIT-CODES.md lists them for users. */
export type ErrorKind = keyof typeof KINDS;

/** An error that a user is meant to read: one line, with what to do about it. */
export class FirstlightError extends Error {
  readonly kind: ErrorKind;
  /** What the user can do, one sentence without a full stop, or undefined. */
  readonly hint: string | undefined;

  constructor(kind: ErrorKind, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.name = 'FirstlightError';
    this.kind = kind;
    this.hint = options.hint;
  }

  /** The message and the hint on one line. */
  get line(): string {
    return this.hint === undefined ? this.message : `${this.message}; ${this.hint}`;
  }
}

/** True where `kind` names an {@link ErrorKind}; for errors that arrive as JSON. */
export function isErrorKind(kind: unknown): kind is ErrorKind {
  return typeof kind === 'string' && Object.hasOwn(KINDS, kind);
}

/** Any thrown value as a FirstlightError; errnos that users meet get their kind and a hint. */
export function toFirstlightError(error: unknown): FirstlightError {
  if (error instanceof FirstlightError) return error;
  if (error instanceof Error) {
    const code = (error as NodeJS.ErrnoException).code;
    switch (code) {
      case 'ENOSPC':
      case 'EDQUOT':
        return new FirstlightError('no-space', error.message, {
          hint: 'free some space, or put --root or --data on another disk',
          cause: error,
        });
      case 'EACCES':
      case 'EPERM':
        return new FirstlightError('permission', error.message, {
          hint: 'run as root, or check who owns the path',
          cause: error,
        });
      case 'ENOENT':
        return new FirstlightError('not-found', error.message, { cause: error });
      case 'EBUSY':
        return new FirstlightError('busy', error.message, { cause: error });
      case 'ECONNREFUSED':
      case 'ECONNRESET':
      case 'EHOSTUNREACH':
      case 'ENETUNREACH':
      case 'ENOTFOUND':
      case 'EAI_AGAIN':
      case 'ETIMEDOUT':
        return new FirstlightError('unreachable', error.message, { cause: error });
      default:
        return new FirstlightError('internal', error.message, { cause: error });
    }
  }
  return new FirstlightError('internal', String(error));
}

/** Process exit code for an error. */
export function exitCode(error: unknown): number {
  return KINDS[toFirstlightError(error).kind].exit;
}

/** HTTP status for an error. */
export function httpStatus(error: unknown): number {
  return KINDS[toFirstlightError(error).kind].status;
}

/** Positive errno that a file system request ends with when `error` stopped it (errno(3)). */
export function toErrno(error: unknown): number {
  const e = toFirstlightError(error);
  const cause = e.cause instanceof Error ? (e.cause as NodeJS.ErrnoException).code : undefined;
  if (cause !== undefined && Object.hasOwn(constants.errno, cause)) {
    return constants.errno[cause as keyof typeof constants.errno];
  }
  // EIO is the honest answer where nothing more is known: the bytes could not be had.
  return e.kind === 'no-space' ? constants.errno.ENOSPC : constants.errno.EIO;
}
