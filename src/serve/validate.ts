// What clients may send in query strings and headers: every value is checked here before anything
// uses it.
import * as v from 'valibot';
import { BUNDLE_MEDIA_TYPE } from '../delta/bundle.ts';
import { PATCH_FRAMES, type RegistryAuth } from '../delta/protocol.ts';
import { FirstlightError } from '../errors/errors.ts';

/** A worker may name at most this many images that it holds. */
export const BASES_MAX = 64;

const text = (most: number) =>
  v.pipe(
    v.string('is given more than once'),
    v.nonEmpty('is empty'),
    v.maxLength(most, 'is too long'),
  );
const reference = text(512);
const platform = v.optional(text(64));
const digest = v.pipe(
  v.string(),
  v.regex(/^sha256:[0-9a-f]{64}$/, 'is no digest (sha256: and 64 hex digits)'),
);
const list = v.pipe(
  v.union([v.array(v.string()), v.string()]),
  v.transform((given) => (typeof given === 'string' ? [given] : given)),
);

const DeltaQuery = v.strictObject({
  image: reference,
  platform,
  base: v.optional(
    v.pipe(list, v.maxLength(BASES_MAX, `is given more than ${BASES_MAX} times`), v.array(digest)),
    [],
  ),
});

const ImageQuery = v.strictObject({ platform });

const NoQuery = v.strictObject({});

const AddQuery = v.strictObject({
  kind: v.picklist(
    ['docker', 'oci', 'docker-archive', 'rootfs'],
    'is none of docker, oci, docker-archive, rootfs',
  ),
  source: v.optional(text(1024)),
  name: v.optional(reference),
  platform,
  base: v.optional(digest),
});

const Auth = v.strictObject({
  username: v.optional(v.string()),
  password: v.optional(v.string()),
  identitytoken: v.optional(v.string()),
  registrytoken: v.optional(v.string()),
});

/** Checks a parsed query string; the error names the parameter. */
function check<S extends v.GenericSchema>(schema: S, query: unknown): v.InferOutput<S> {
  // fastify's query objects have no prototype, which strictObject does not mind.
  const result = v.safeParse(schema, query);
  if (result.success) return result.output;
  const issue = result.issues[0];
  const path = issue.path?.map((item) => String(item.key)) ?? [];
  const name = JSON.stringify((path[0] ?? 'query').slice(0, 64));
  let what = issue.message;
  if (issue.type === 'strict_object') {
    what = issue.expected === 'never' ? 'is not known' : 'is missing';
  }
  throw new FirstlightError('usage', `query parameter ${name} ${what}`, {
    hint: 'docs/PROTOCOL.md lists the parameters',
  });
}

export const deltaQuery = (query: unknown) => check(DeltaQuery, query);
export const imageQuery = (query: unknown) => check(ImageQuery, query);
export const noQuery = (query: unknown) => check(NoQuery, query);
export const addQuery = (query: unknown) => check(AddQuery, query);

/** Whether the frames that a worker says it can take have patches among them; it may name kinds of a later version. */
export function takesPatches(header: string | string[] | undefined): boolean {
  const given = typeof header === 'string' ? header.split(',') : [];
  return given.some((kind) => kind.trim().toLowerCase() === PATCH_FRAMES);
}

/** A chain id in a path. */
export function chainId(text: string): string {
  if (v.is(digest, text)) return text;
  throw new FirstlightError('usage', 'a chain id is sha256: and 64 hex digits', {
    hint: 'docs/PROTOCOL.md says how it is computed',
  });
}

/** The login in a request's header. The error tells nothing of what stood in it. */
export function registryAuth(header: string | string[] | undefined): RegistryAuth | undefined {
  if (header === undefined) return undefined;
  try {
    if (typeof header !== 'string') throw new Error('twice');
    const json = Buffer.from(header, 'base64').toString('utf8');
    const given: unknown = JSON.parse(json);
    if (Array.isArray(given)) throw new Error('a list');
    const parsed = v.parse(Auth, given);
    return Object.fromEntries(Object.entries(parsed).filter(([, value]) => value !== undefined));
  } catch {
    // Neither the cause nor the text may go into the error: they hold a password.
    throw new FirstlightError('usage', 'the registry login in the request cannot be read', {
      hint: 'send base64 of {"username":"...","password":"..."}',
    });
  }
}

/** The media type that bundles are sent as. */
export const MEDIA_TYPE = BUNDLE_MEDIA_TYPE;
