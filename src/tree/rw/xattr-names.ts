// Extended attributes that belong to the tree itself, and those of a container that look like them.
//
// trusted.overlay.* in upper/ is overlayfs' own. What a container sets under such a name is kept one
// level down, as trusted.overlay.overlay.*: the same as overlayfs does since Linux 6.7.
const OVERLAY = 'trusted.overlay.';
const ESCAPED = 'trusted.overlay.overlay.';
const FIRSTLIGHT = 'trusted.firstlight.';

/** "y": nothing of the template is merged into the directory. */
export const OPAQUE = `${OVERLAY}opaque`;
/** Where the template has what is merged into the directory: a path from its root. */
export const REDIRECT = `${OVERLAY}redirect`;
/** overlayfs' metacopy=on: a file without its content. */
export const METACOPY = `${OVERLAY}metacopy`;
/**
 * st_ino, decimal, of a file that was promoted and of a directory that was made anew. On upper/ itself: its
 * attributes are set.
 */
export const ORIGIN = `${FIRSTLIGHT}origin`;

/** The name in upper/ of an attribute of the container; undefined: nobody may have it. */
export function toUpper(attribute: string): string | undefined {
  if (attribute.startsWith(FIRSTLIGHT)) return undefined;
  return attribute.startsWith(OVERLAY) ? ESCAPED + attribute.slice(OVERLAY.length) : attribute;
}

/** The container's name of an attribute in upper/; undefined: not for the container. */
export function fromUpper(attribute: string): string | undefined {
  if (attribute.startsWith(ESCAPED)) return OVERLAY + attribute.slice(ESCAPED.length);
  return attribute.startsWith(OVERLAY) || attribute.startsWith(FIRSTLIGHT) ? undefined : attribute;
}
