// The image's `User` field (OCI image-spec: user, uid, user:group, uid:gid, ...) as numbers, by the
// image's own passwd(5) and group(5). Pure: reading the files is the caller's.
import { FirstlightError } from '../../errors/errors.ts';

/** Who the container's process is. */
export interface ContainerUser {
  uid: number;
  gid: number;
  /**
   * Supplementary groups, `gid` among them: a process that changes its group (a setgid program) must
   * not escape what is denied to the group it came from.
   */
  additionalGids: number[];
  /** Home directory, `/` where the user database knows none. */
  home: string;
}

interface PasswdEntry {
  name: string;
  uid: number;
  gid: number;
  home: string;
}

interface GroupEntry {
  name: string;
  gid: number;
  members: string[];
}

const NUMBER = /^\d{1,10}$/;
/** Highest id that is not the kernel's "unchanged". */
const ID_MAX = 2 ** 32 - 2;

function linesOf(text: string): string[][] {
  return text
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.split(':'));
}

/** Entries of passwd(5); malformed lines are left out, as libc does. */
export function parsePasswd(text: string): PasswdEntry[] {
  return linesOf(text)
    .filter((f) => f.length >= 6 && NUMBER.test(f[2] ?? '') && NUMBER.test(f[3] ?? ''))
    .map((f) => ({ name: f[0] ?? '', uid: Number(f[2]), gid: Number(f[3]), home: f[5] || '/' }));
}

/** Entries of group(5). */
export function parseGroup(text: string): GroupEntry[] {
  return linesOf(text)
    .filter((f) => f.length >= 3 && NUMBER.test(f[2] ?? ''))
    .map((f) => ({
      name: f[0] ?? '',
      gid: Number(f[2]),
      members: (f[3] ?? '').split(',').filter((member) => member !== ''),
    }));
}

function idOf(text: string): number {
  const id = Number(text);
  if (id > ID_MAX) throw new FirstlightError('usage', `the image's user id ${text} is too large`);
  return id;
}

/**
 * Resolves `User` of an image's config; empty means root.
 * @throws FirstlightError `usage` where a name is not in the image's databases
 */
export function resolveUser(spec: string, passwd: string, group: string): ContainerUser {
  const [userPart = '', groupPart] = spec.split(':', 2);
  const users = parsePasswd(passwd);
  const groups = parseGroup(group);
  const wanted = userPart === '' ? '0' : userPart;
  // A name wins over a number: a user may be called "1000".
  const byName = users.find((user) => user.name === wanted);
  if (byName === undefined && !NUMBER.test(wanted)) {
    throw new FirstlightError('usage', `the image has no user "${wanted}" in /etc/passwd`, {
      hint: 'use an image whose USER is in its /etc/passwd, or is a number',
    });
  }
  const entry = byName ?? users.find((user) => user.uid === idOf(wanted));
  const uid = entry?.uid ?? idOf(wanted);
  const home = entry?.home ?? '/';
  if (groupPart !== undefined && groupPart !== '') {
    const named = groups.find((g) => g.name === groupPart);
    if (named === undefined && !NUMBER.test(groupPart)) {
      throw new FirstlightError('usage', `the image has no group "${groupPart}" in /etc/group`);
    }
    // As docker does: a group that is named outright comes alone.
    const only = named?.gid ?? idOf(groupPart);
    return { uid, gid: only, additionalGids: [only], home };
  }
  const gid = entry?.gid ?? 0;
  const memberships = groups
    .filter((g) => entry !== undefined && g.members.includes(entry.name))
    .map((g) => g.gid);
  return { uid, gid, additionalGids: [...new Set([gid, ...memberships])], home };
}
