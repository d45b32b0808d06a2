// containerd's hosts.toml: which hosts stand for a registry, in which order, and how each is spoken to. Only the
// text is read here; certificates and the search for the file are registry-hosts.ts.
import { isAbsolute, join, posix } from 'node:path';
import { parse } from 'smol-toml';
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';

/** A client certificate and its key; one file may hold both. */
export interface ClientPair {
  certificate: string;
  key: string;
}

/** One host of the file. */
export interface HostEntry {
  /** The API's root without a slash at its end, such as `https://mirror.example.com/v2`; undefined: the registry's own. */
  url: URL | undefined;
  /** May say which digest a tag has. */
  resolve: boolean;
  /** May give manifests and blobs by digest. */
  pull: boolean;
  /** Files with certificate authorities. */
  ca: string[];
  client: ClientPair[];
  /** Undefined where the file does not say. */
  skipVerify: boolean | undefined;
  headers: [name: string, value: string][];
  /** Bound on a connection attempt, ms. */
  dialTimeoutMs: number | undefined;
}

const Text = v.string('must be a string');
const Texts = v.array(Text, 'must be an array');
const Fields = v.object({
  capabilities: v.optional(Texts),
  ca: v.optional(v.union([Text, Texts], 'must be a path or an array of paths')),
  client: v.optional(
    v.union(
      [Text, v.array(v.union([Text, v.pipe(Texts, v.length(2, 'must be pairs of paths'))]))],
      'must be a path, an array of paths, or an array of pairs of paths',
    ),
  ),
  skip_verify: v.optional(v.boolean('must be true or false')),
  header: v.optional(
    v.record(
      Text,
      v.union([Text, Texts], 'must be a string or an array of strings'),
      'must be a table',
    ),
  ),
  override_path: v.optional(v.boolean('must be true or false')),
  dial_timeout: v.optional(Text),
  proxy: v.optional(Text),
});
const File = v.object({
  ...Fields.entries,
  server: v.optional(Text),
  host: v.optional(v.record(Text, Fields, 'must be a table'), {}),
});
type Fields = v.InferOutput<typeof Fields>;

const HEADER_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const HEADER_VALUE = /^[\x20-\x7e\t]*$/;
const DURATION = /^(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+$/;
const UNIT_MS = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1e3, m: 60e3, h: 3600e3 };

function bad(path: string, what: string): FirstlightError {
  return new FirstlightError('usage', `${path}: ${what}`, { hint: 'mend the file' });
}

/** Go's way to write a time (`1m30s`), as ms. */
function durationMs(text: string): number | undefined {
  if (!DURATION.test(text)) return undefined;
  let ms = 0;
  for (const [, count, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)/g)) {
    ms += Number(count) * UNIT_MS[unit as keyof typeof UNIT_MS];
  }
  return Math.max(1, Math.min(ms, 2 ** 31 - 1));
}

function urlOf(server: string, overridePath: boolean, path: string): URL {
  // Only the host is repeated in errors: a URL may hold a password.
  let url: URL;
  try {
    url = new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(server) ? server : `https://${server}`);
  } catch {
    throw bad(path, 'a host is no URL; write https://HOST[:PORT]');
  }
  if (url.protocol !== 'https:' && url.protocol !== 'http:') {
    throw bad(path, `${url.protocol}//${url.host} is neither https nor http`);
  }
  if (url.username !== '' || url.password !== '') {
    throw bad(path, `the URL of ${url.host} holds a login; use docker login ${url.host} instead`);
  }
  const root = posix.normalize(url.pathname).replace(/\/$/, '');
  url.pathname = overridePath || root.endsWith('/v2') ? root : `${root}/v2`;
  url.search = '';
  url.hash = '';
  // docker.io answers for people; its registry has a name of its own.
  if (url.host === 'docker.io' || url.host === 'index.docker.io') url.host = 'registry-1.docker.io';
  return url;
}

function headersOf(fields: Fields, path: string): HostEntry['headers'] {
  const headers: HostEntry['headers'] = [];
  for (const [name, values] of Object.entries(fields.header ?? {})) {
    for (const value of typeof values === 'string' ? [values] : values) {
      // The value may be a secret: the error does without it.
      if (!HEADER_NAME.test(name) || !HEADER_VALUE.test(value)) {
        throw bad(path, `the header '${name.slice(0, 80)}' cannot be sent as it is written`);
      }
      headers.push([name.toLowerCase(), value]);
    }
  }
  return headers;
}

function entryOf(server: string | undefined, fields: Fields, path: string): HostEntry {
  const absolute = (file: string) => (isAbsolute(file) ? file : join(path, '..', file));
  const listed = (value: string | string[] | undefined) =>
    (typeof value === 'string' ? [value] : (value ?? [])).map(absolute);
  const client = typeof fields.client === 'string' ? [fields.client] : (fields.client ?? []);
  const capabilities = (fields.capabilities ?? []).map((each) => each.toLowerCase());
  const unknown = capabilities.find((each) => !['pull', 'resolve', 'push'].includes(each));
  if (unknown !== undefined) {
    throw bad(path, `unknown capability '${unknown}'; there are pull, resolve and push`);
  }
  const may = (what: string) => capabilities.length === 0 || capabilities.includes(what);
  const dialTimeoutMs =
    fields.dial_timeout === undefined ? undefined : durationMs(fields.dial_timeout);
  if (fields.dial_timeout !== undefined && dialTimeoutMs === undefined) {
    throw bad(path, `dial_timeout '${fields.dial_timeout}' is no time such as 500ms or 3s`);
  }
  if (fields.proxy !== undefined) {
    // To go without it could tell the wrong side who asks for what.
    throw new FirstlightError('unsupported', `${path}: proxy for one host is not supported`, {
      hint: 'set HTTPS_PROXY instead',
    });
  }
  return {
    url: server === undefined ? undefined : urlOf(server, fields.override_path === true, path),
    resolve: may('resolve'),
    pull: may('pull'),
    ca: listed(fields.ca),
    client: client.map((each) => {
      const [certificate = '', key = ''] = typeof each === 'string' ? [each] : each;
      return { certificate: absolute(certificate), key: absolute(key === '' ? certificate : key) };
    }),
    skipVerify: fields.skip_verify,
    headers: headersOf(fields, path),
    dialTimeoutMs,
  };
}

/**
 * Reads a hosts.toml: the hosts in the order in which they are tried, the server last. Keys that are not known are
 * left to newer versions of containerd.
 * @param path  of the file, for errors and for paths in it
 * @throws FirstlightError `usage` for what is no such file, `unsupported` for a proxy; no value of it is in the error
 */
export function parseHostsFile(text: string, path: string): HostEntry[] {
  let table: unknown;
  try {
    table = parse(text);
  } catch (error) {
    // The further lines quote the file, which may hold secrets.
    const [reason = 'not TOML'] = (error as Error).message.split('\n');
    const { line } = error as { line?: number };
    throw bad(path, line === undefined ? reason : `line ${line}: ${reason}`);
  }
  const parsed = v.safeParse(File, table);
  if (!parsed.success) {
    const [issue] = parsed.issues;
    // Without the host's own key, which may be a URL with a password in it.
    const keys = (issue.path ?? []).map(({ key }) => String(key));
    const field = keys[0] === 'host' && keys.length > 2 ? `a host's ${keys[2]}` : keys[0];
    throw bad(path, `${field ?? 'the document'} ${issue.message}`);
  }
  const { server, host, ...own } = parsed.output;
  const entries = Object.entries(host).map(([name, fields]) => {
    if (name === '') throw bad(path, 'a host has no name');
    return entryOf(name, fields, path);
  });
  return [...entries, entryOf(server === '' ? undefined : server, own, path)];
}
