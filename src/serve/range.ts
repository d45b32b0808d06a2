// Conditional and range requests (RFC 9110, sections 13 and 14) for one immutable representation
// with a strong ETag. What does not live here: sending it.

/** What to answer. */
export type Selection =
  | { status: 200; start: number; end: number }
  | { status: 206; start: number; end: number }
  | { status: 304 }
  | { status: 416 };

/** Request headers that decide it. */
export interface SelectionHeaders {
  range?: string | undefined;
  'if-range'?: string | undefined;
  'if-none-match'?: string | undefined;
}

/** True where an If-None-Match list names the ETag (weak comparison, as the header wants it). */
export function matchesNone(header: string, etag: string): boolean {
  if (header.trim() === '*') return true;
  return header.split(',').some((tag) => tag.trim().replace(/^W\//, '') === etag);
}

/**
 * Which bytes [start, end) of `bytes` a GET is answered with. Several ranges, other units and malformed ranges are
 * answered in full, as the RFC allows or demands.
 */
export function select(headers: SelectionHeaders, etag: string, bytes: number): Selection {
  const none = headers['if-none-match'];
  if (none !== undefined && matchesNone(none, etag)) return { status: 304 };
  const whole = { status: 200, start: 0, end: bytes } as const;
  if (headers.range === undefined) return whole;
  // Strong comparison: a weak tag or a date never matches, and the client gets everything.
  const ifRange = headers['if-range'];
  if (ifRange !== undefined && ifRange.trim() !== etag) return whole;
  const match = /^bytes=\s*([0-9]*)-([0-9]*)\s*$/i.exec(headers.range);
  if (match === null) return whole;
  const [, from, to] = match as unknown as [string, string, string];
  if (from === '') {
    if (to === '') return whole;
    const suffix = Number(to);
    if (suffix === 0 || bytes === 0) return { status: 416 };
    return { status: 206, start: Math.max(0, bytes - suffix), end: bytes };
  }
  const start = Number(from);
  const last = to === '' ? Number.POSITIVE_INFINITY : Number(to);
  if (last < start) return whole;
  if (start >= bytes) return { status: 416 };
  return { status: 206, start, end: Math.min(last + 1, bytes) };
}
