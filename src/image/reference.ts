// Names of images: registry references (docker.io and library/ filled in) and the sources that a
// user can name on the command line. Nothing here opens anything.
import { FirstlightError } from '../errors/errors.ts';
import { parseDigest } from './digest.ts';

/** A parsed registry reference. */
export interface Reference {
  /** Registry as users name it, with port: `docker.io`, `localhost:5000`. */
  registry: string;
  /** Repository path without the registry: `library/redis`. */
  repository: string;
  tag?: string;
  /** `sha256:...`; wins over the tag. */
  digest?: string;
}

/** Where an image comes from. */
export type Source =
  | { kind: 'registry'; reference: Reference }
  | { kind: 'oci'; directory: string; tag: string | undefined }
  | { kind: 'docker-archive'; file: string; tag: string | undefined }
  | { kind: 'rootfs'; file: string };

const HOST = /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?$/;
const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;

function bad(text: string, why: string): FirstlightError {
  return new FirstlightError('usage', `'${text}' is not an image reference: ${why}`, {
    hint: 'write HOST/NAME:TAG or HOST/NAME@sha256:..., such as docker.io/library/redis:7',
  });
}

/**
 * Parses `[HOST/]NAME[:TAG][@DIGEST]` by docker's rules: without a host it is docker.io, there
 * without a slash it is library/; without tag and digest the tag is `latest`.
 * @throws FirstlightError `usage`
 */
export function parseReference(text: string): Reference {
  let rest = text;
  let digest: string | undefined;
  const at = rest.indexOf('@');
  if (at >= 0) {
    digest = rest.slice(at + 1);
    rest = rest.slice(0, at);
    try {
      parseDigest(digest, 'reference');
    } catch (error) {
      throw bad(text, (error as Error).message);
    }
  }
  let tag: string | undefined;
  const colon = rest.lastIndexOf(':');
  if (colon > rest.lastIndexOf('/')) {
    tag = rest.slice(colon + 1);
    rest = rest.slice(0, colon);
    if (!TAG.test(tag)) throw bad(text, `the tag '${tag}' is malformed`);
  }
  let registry = 'docker.io';
  const slash = rest.indexOf('/');
  const first = slash < 0 ? '' : rest.slice(0, slash);
  if (slash >= 0 && (/[.:\]]/.test(first) || first === 'localhost' || /[A-Z]/.test(first))) {
    registry = first;
    rest = rest.slice(slash + 1);
    if (!HOST.test(registry)) throw bad(text, `the host '${registry}' is malformed`);
    if (registry === 'index.docker.io' || registry === 'registry-1.docker.io') {
      registry = 'docker.io';
    }
  }
  const components = rest.split('/');
  const wrong = components.find((component) => !COMPONENT.test(component));
  if (wrong !== undefined) throw bad(text, `'${wrong}' is no name (lower case, digits, . _ -)`);
  if (rest.length > 255) throw bad(text, 'the name is longer than 255 characters');
  const repository = registry === 'docker.io' && components.length === 1 ? `library/${rest}` : rest;
  if (tag === undefined && digest === undefined) tag = 'latest';
  return {
    registry,
    repository,
    ...(tag === undefined ? {} : { tag }),
    ...(digest === undefined ? {} : { digest }),
  };
}

/** A reference in full, as docker prints it. */
export function formatReference(reference: Reference): string {
  const { registry, repository, tag, digest } = reference;
  const name = `${registry}/${repository}`;
  return `${name}${tag === undefined ? '' : `:${tag}`}${digest === undefined ? '' : `@${digest}`}`;
}

function splitPath(rest: string, text: string, form: string): [string, string | undefined] {
  // As skopeo does: the path ends at the first colon.
  const colon = rest.indexOf(':');
  const path = colon < 0 ? rest : rest.slice(0, colon);
  const tag = colon < 0 ? undefined : rest.slice(colon + 1);
  if (path === '' || tag === '') {
    throw new FirstlightError('usage', `'${text}' is not a source`, { hint: `write ${form}` });
  }
  return [path, tag];
}

/**
 * Parses a source as skopeo names it: `docker://HOST/NAME:TAG`, `oci:DIR[:TAG]`,
 * `docker-archive:FILE[:NAME:TAG | :@INDEX]`, `rootfs:FILE`.
 * @throws FirstlightError `usage`
 */
export function parseSource(text: string): Source {
  const colon = text.indexOf(':');
  const scheme = colon < 0 ? '' : text.slice(0, colon);
  const rest = text.slice(colon + 1);
  if (scheme === 'docker') {
    if (!rest.startsWith('//')) {
      throw new FirstlightError('usage', `'${text}' is not a source`, {
        hint: 'write docker://HOST/NAME:TAG',
      });
    }
    return { kind: 'registry', reference: parseReference(rest.slice(2)) };
  }
  if (scheme === 'oci') {
    const [directory, tag] = splitPath(rest, text, 'oci:DIR:TAG');
    return { kind: 'oci', directory, tag };
  }
  if (scheme === 'docker-archive') {
    const [file, tag] = splitPath(rest, text, 'docker-archive:FILE[:NAME:TAG]');
    return { kind: 'docker-archive', file, tag };
  }
  if (scheme === 'rootfs' && rest !== '') return { kind: 'rootfs', file: rest };
  throw new FirstlightError('usage', `'${text}' is not a source`, {
    hint: 'write docker://HOST/NAME:TAG, oci:DIR:TAG, docker-archive:FILE or rootfs:FILE.tar',
  });
}
