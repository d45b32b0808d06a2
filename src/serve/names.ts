// Names of images in the catalog: their normal form. What a name points to is the catalog's
// business; the grammar is docker's, and stands in image/reference.ts.
//
// The normal form NAME:TAG leaves out what docker leaves out when it shows a name: `docker.io/`, and
// `library/` after it; a missing tag is `latest`. Nothing else is rewritten.
import { FirstlightError } from '../errors/errors.ts';
import { parseReference, type Reference } from '../image/reference.ts';

const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** A reference to an image of the catalog. */
export type CatalogRef = { by: 'name'; name: string } | { by: 'digest'; digest: string };

/** True for `sha256:` and 64 lower-case hex digits. */
export function isDigest(text: string): boolean {
  return DIGEST.test(text);
}

function shown(reference: Reference): string {
  const { registry, repository, tag } = reference;
  const short =
    registry === 'docker.io' ? repository.replace(/^library\/(?=[^/]+$)/, '') : undefined;
  return `${short ?? `${registry}/${repository}`}:${tag ?? 'latest'}`;
}

/**
 * The normal form of a name.
 * @throws FirstlightError 'usage' where it is not in the grammar, or ends in a digest
 */
export function normalizeName(text: string): string {
  const reference = parseReference(text);
  if (reference.digest !== undefined) {
    throw new FirstlightError('usage', `'${text}' is not a name: it ends in a digest`, {
      hint: 'write NAME:TAG',
    });
  }
  return shown(reference);
}

/** What a client means by REF: NAME[:TAG], a digest, or NAME@DIGEST (where the digest decides). */
export function parseCatalogRef(text: string): CatalogRef {
  if (isDigest(text)) return { by: 'digest', digest: text };
  const reference = parseReference(text);
  if (reference.digest === undefined) return { by: 'name', name: shown(reference) };
  if (!isDigest(reference.digest)) {
    throw new FirstlightError('usage', `'${text}': images are named by sha256 digests here`, {
      hint: 'write NAME:TAG or sha256:...',
    });
  }
  return { by: 'digest', digest: reference.digest };
}
