// Extended attributes, ACLs among them. What does not live here: which names are hidden (xattr-names.ts).
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import { E, errnoOf, fail, S_IPERM, S_ISGID } from './abi.ts';
import { ACL_ACCESS, ACL_DEFAULT } from './acl.ts';
import { CAPABILITY, type Where, whereIs } from './attr.ts';
import type { Child, Core } from './core.ts';
import { Directory, type Node } from './node.ts';
import { promote } from './promote.ts';
import { fromUpper, toUpper } from './xattr-names.ts';

/** Where the attributes of a child are: in the row of the template, in upper/, or nowhere any more. */
function source(core: Core, child: Child): { row: number } | Where | undefined {
  if (typeof child === 'number') return { row: child };
  if (child.last !== undefined) return undefined;
  const where = whereIs(core, child);
  return where ?? { row: child.row };
}

/** @throws Errno ENODATA */
export function getXattr(core: Core, child: Child, attribute: string): Uint8Array {
  const from = source(core, child);
  let value: Uint8Array | undefined;
  if (from !== undefined && 'row' in from) {
    value = core.toc.xattrs(from.row).get(attribute);
  } else if (from !== undefined) {
    const inUpper = toUpper(attribute);
    if (inUpper !== undefined) value = core.io.getxattr(from.fd, from.name, inUpper);
  }
  if (value === undefined) throw fail('ENODATA', attribute);
  return value;
}

export function listXattrs(core: Core, child: Child): string[] {
  const from = source(core, child);
  if (from === undefined) return [];
  if ('row' in from) return [...core.toc.xattrs(from.row).keys()];
  return core.io.listxattr(from.fd, from.name).flatMap((name) => fromUpper(name) ?? []);
}

/** Promotes, and says where. @throws Wait, Errno */
function writable(core: Core, node: Node, attribute: string): { at: Where; name: string } {
  const name = toUpper(attribute);
  if (name === undefined) throw fail('EOPNOTSUPP', attribute);
  if (node instanceof Directory && node.removed) throw fail('ENOENT', 'removed directory');
  promote(core, node);
  const at = whereIs(core, node);
  if (at === undefined) throw fail('ESTALE', 'removed file');
  if (!(node instanceof Directory)) node.privileged = undefined;
  return { at, name };
}

/** @param killSgid  the setgid bit goes @throws Wait, Errno */
export function setXattr(
  core: Core,
  node: Node,
  attribute: string,
  value: Uint8Array,
  flags: number,
  killSgid: boolean,
): void {
  const { at, name } = writable(core, node, attribute);
  // An ACL may let the group run a file whose setgid bit meant locking before.
  if (attribute === CAPABILITY || attribute === ACL_ACCESS) core.adopted.mayGetPrivileges(node);
  core.io.setxattr(at.fd, at.name, name, value, flags);
  if (killSgid && attribute === ACL_ACCESS) {
    const attributes = new Float64Array(ATTR_SLOTS);
    core.io.stat(at.fd, at.name, attributes);
    const mode = attributes[ATTR.mode]!;
    if ((mode & S_ISGID) !== 0) core.io.chmod(at.fd, at.name, mode & S_IPERM & ~S_ISGID);
  }
  forgetAcl(core, node, attribute);
}

/** @throws Wait, Errno ENODATA */
export function removeXattr(core: Core, node: Node, attribute: string): void {
  // Nothing is copied for an attribute that is not there.
  if (toUpper(attribute) !== undefined) requireXattr(core, node, attribute);
  const { at, name } = writable(core, node, attribute);
  core.io.removexattr(at.fd, at.name, name);
  forgetAcl(core, node, attribute);
}

function requireXattr(core: Core, node: Node, attribute: string): void {
  try {
    getXattr(core, node, attribute);
  } catch (error) {
    // Removing an ACL that is not there is success, and changes nothing.
    if (errnoOf(error) === E.ENODATA && isAcl(attribute)) return;
    throw error;
  }
}

function isAcl(attribute: string): boolean {
  return attribute === ACL_ACCESS || attribute === ACL_DEFAULT;
}

function forgetAcl(core: Core, node: Node, attribute: string): void {
  if (!(node instanceof Directory) || attribute !== ACL_DEFAULT) return;
  node.defaultAcl = undefined;
  core.lent.recall(node);
}
