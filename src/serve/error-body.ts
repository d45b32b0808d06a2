// Errors as clients see them: a client's own mistakes in full, the server's troubles without its paths.
import type { ErrorBody } from '../delta/protocol.ts';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';

/**
 * Any thrown value as what the answer says. What comes straight from the system is about the server's own files: a
 * missing one is no 404.
 */
export function clientError(thrown: unknown): FirstlightError {
  if (thrown instanceof FirstlightError) return thrown;
  const error = toFirstlightError(thrown);
  if (error.kind === 'no-space') {
    return new FirstlightError('no-space', "the server's disk is full", {
      hint: 'free some space on the disk of --data there',
      cause: thrown,
    });
  }
  return new FirstlightError('internal', error.message, { cause: thrown });
}

/** The JSON body of an error answer. An internal error's message stays in the log. */
export function errorBody(error: FirstlightError): ErrorBody {
  const message = error.kind === 'internal' ? 'the server failed; its log says why' : error.message;
  return {
    error: { kind: error.kind, message, ...(error.hint === undefined ? {} : { hint: error.hint }) },
  };
}
