// What a new file inherits from the default ACL of its directory, where the filesystem of upper/ cannot
// do it itself: files that cover a whiteout are made in work/, which has no ACL.
//
// The attribute's layout is linux/posix_acl_xattr.h: a u32 version, then entries of u16 tag, u16
// permissions, u32 id, all little-endian. What is inherited is described in acl(5), "object creation
// and default ACLs".
const VERSION = 2;
const HEAD_BYTES = 4;
const ENTRY_BYTES = 8;
const TAG = { userObj: 0x01, user: 0x02, groupObj: 0x04, group: 0x08, mask: 0x10, other: 0x20 };

export const ACL_ACCESS = 'system.posix_acl_access';
export const ACL_DEFAULT = 'system.posix_acl_default';

/** What becomes of a mode below a default ACL. */
export interface Inherited {
  /** All bits of the mode that was asked for, less what the ACL does not grant. */
  mode: number;
  /** The new file's own ACL; undefined where the mode says it all. */
  access: Buffer | undefined;
}

/** @param acl  value of system.posix_acl_default; one that is no such thing grants what the mode says */
export function inherit(acl: Uint8Array, mode: number): Inherited {
  const access = Buffer.from(acl);
  if (access.length < HEAD_BYTES || access.readUInt32LE(0) !== VERSION)
    return { mode, access: undefined };
  const at = new Map<number, number>();
  let named = false;
  for (let entry = HEAD_BYTES; entry + ENTRY_BYTES <= access.length; entry += ENTRY_BYTES) {
    const tag = access.readUInt16LE(entry);
    if (tag === TAG.user || tag === TAG.group) named = true;
    else at.set(tag, entry + 2);
  }
  let left = mode;
  const limit = (tag: number, shift: number) => {
    const offset = at.get(tag);
    if (offset === undefined) return;
    const granted = access.readUInt16LE(offset) & (left >> shift) & 7;
    access.writeUInt16LE(granted, offset);
    left = (left & ~(7 << shift)) | (granted << shift);
  };
  limit(TAG.userObj, 6);
  limit(at.has(TAG.mask) ? TAG.mask : TAG.groupObj, 3);
  limit(TAG.other, 0);
  return { mode: left, access: named || at.has(TAG.mask) ? access : undefined };
}
