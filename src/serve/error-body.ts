// Errors as clients see them.
import type { ErrorBody } from '../delta/protocol.ts';
import type { FirstlightError } from '../errors/errors.ts';

/** The JSON body of an error answer. What is not meant for users stays in the server's log. */
export function errorBody(error: FirstlightError): ErrorBody {
  const message = error.kind === 'internal' ? 'the server failed; its log says why' : error.message;
  return {
    error: { kind: error.kind, message, ...(error.hint === undefined ? {} : { hint: error.hint }) },
  };
}
