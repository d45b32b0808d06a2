// Shape of every control request, checked before anything is done with it.
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';
import { checkGroup } from '../trace/names.ts';
import type { ControlRequest } from './control.ts';

const text = v.pipe(v.string(), v.nonEmpty(), v.maxLength(4096));
/** Throws the user's error itself. */
const group = v.pipe(v.string(), v.transform(checkGroup));
const path = v.pipe(text, v.startsWith('/'));
/** It becomes a directory's name. */
const name = v.pipe(text, v.regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/));
const ms = v.pipe(v.number(), v.finite(), v.minValue(0));

const request = v.variant('op', [
  v.object({
    op: v.literal('mount'),
    image: text,
    directory: v.exactOptional(path),
    replaceDead: v.exactOptional(v.boolean()),
    server: v.pipe(text, v.url()),
    tokenFile: v.exactOptional(path),
    platform: text,
    rw: v.picklist(['overlay', 'fuse', 'off']),
    session: v.picklist(['kernel', 'fuse-native']),
    name: v.exactOptional(name),
    keep: v.exactOptional(v.boolean()),
    trace: v.exactOptional(group),
    updateFrom: v.exactOptional(v.pipe(v.array(text), v.maxLength(64))),
    waitTimeoutMs: ms,
    threads: v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(64)),
    passthrough: v.boolean(),
    opens: v.exactOptional(v.picklist(['auto', 'seen'])),
    wait: v.boolean(),
    lease: v.exactOptional(
      v.object({
        container: v.exactOptional(v.object({ command: v.array(text), id: text })),
        bundle: v.exactOptional(path),
      }),
    ),
    requestedAt: ms,
    mountNamespace: v.exactOptional(text),
  }),
  v.object({
    op: v.literal('umount'),
    directory: path,
    lazy: v.boolean(),
    keep: v.exactOptional(v.boolean()),
  }),
  v.object({
    op: v.literal('status'),
    directory: v.exactOptional(path),
    follow: v.exactOptional(v.boolean()),
  }),
  v.object({
    op: v.literal('trace'),
    on: v.boolean(),
    directory: v.exactOptional(path),
    group,
  }),
  v.object({ op: v.literal('images') }),
  v.object({ op: v.literal('snapshots') }),
  v.object({ op: v.literal('pulls') }),
  v.object({
    op: v.literal('gc'),
    all: v.exactOptional(v.boolean()),
    snapshots: v.exactOptional(v.boolean()),
  }),
  v.object({ op: v.literal('verify') }),
  v.object({ op: v.literal('ping') }),
  v.object({ op: v.literal('stop') }),
]);

/** @throws FirstlightError `usage` naming the field */
export function parseRequest(value: unknown): ControlRequest {
  const parsed = v.safeParse(request, value);
  if (parsed.success) return parsed.output;
  const [issue] = parsed.issues;
  throw new FirstlightError(
    'usage',
    `bad control request: ${v.getDotPath(issue) ?? 'op'}: ${issue.message}`,
    { hint: 'client and daemon are of different versions: run "firstlight daemon --stop"' },
  );
}
