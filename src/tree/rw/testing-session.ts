// What the session answers for in the tree's place, checked against what the tree says. Only tests import it.
import assert from 'node:assert/strict';
import { fstatSync, readdirSync } from 'node:fs';
import { ATTR, ATTR_SLOTS } from '../../native/upcalls.ts';
import { errnoOf, O_PATH, O_RDONLY, S_IFMT, S_IFREG } from './abi.ts';
import { OWN_INO } from './core.ts';
import type { Caller } from './operations.ts';
import { type Stage, statOf } from './testing.ts';

/** A directory that the session may change names of, where the template has none of that name. */
function lentFor({ host, image: { toc } }: Stage, parent: number, name: string): number {
  const lent = host.lent.get(parent);
  if (lent?.changes !== true) return -1;
  const covered = lent.row >= 0 && toc.lookup(lent.row, Buffer.from(name, 'latin1')) >= 0;
  return covered ? -1 : lent.fd;
}

/** CREATE as the session does it; undefined where it leaves it to the tree. */
export function createAsSession(
  stage: Stage,
  parent: number,
  name: string,
  flags: number,
  mode: number,
  caller: Caller,
): { node: number; fd: number } | undefined {
  const { host, io, tree } = stage;
  // As the kernel does before.
  tree.lookup(parent, name);
  const directory = lentFor(stage, parent, name);
  const node = host.leased[0];
  if (directory < 0 || node === undefined || (mode & 0o6000) !== 0) return undefined;
  let fd: number;
  try {
    fd = io.createFile(directory, name, flags, mode & 0o7777 & ~caller.umask, caller);
  } catch {
    return undefined; // the tree fails in the same way
  }
  host.leased.shift();
  const attributes = new Float64Array(ATTR_SLOTS);
  io.stat(fd, '', attributes);
  host.adopt(node, io.openFile(fd, '', O_RDONLY), 0, 0, 1);
  tree.created(parent, name, node, OWN_INO + attributes[ATTR.ino]!, flags);
  return { node, fd };
}

/** UNLINK as the session does it; false where it leaves it to the tree. */
export function removeAsSession(stage: Stage, parent: number, name: string): boolean {
  const { io, tree } = stage;
  const directory = lentFor(stage, parent, name);
  if (directory < 0) return false;
  let fd: number;
  try {
    fd = io.openFile(directory, name, O_PATH);
  } catch (error) {
    assert.ok(errnoOf(error) > 0);
    return false;
  }
  const attributes = new Float64Array(ATTR_SLOTS);
  io.stat(fd, '', attributes);
  if ((attributes[ATTR.mode]! & S_IFMT) !== S_IFREG || attributes[ATTR.nlink] !== 1) {
    io.close(fd);
    return false;
  }
  io.unlink(directory, name);
  tree.removed(parent, name, fd);
  return true;
}

/** Names that the session would say are not there must not be. */
export function compareLent({ host, image: { toc }, tree }: Stage): void {
  for (const [node, { fd, row }] of host.lent) {
    const known = new Set<string>(readdirSync(`/proc/self/fd/${fd}`, 'latin1'));
    if (row >= 0) {
      const { first, end } = toc.children(row);
      for (let child = first; child < end; child++) known.add(toc.name(child));
    }
    for (const { name } of tree.list(node, 0))
      assert.ok(known.has(name), `${name} in node ${node}`);
  }
}

/** What the session would show of a file is what the tree shows; it writes none that a write changes. */
export function compareAdopted({ host, tree }: Stage): void {
  for (const [node, fd] of host.adopted) {
    const st = fstatSync(fd);
    if (st.isDirectory()) continue;
    const { mode, nlink, size, uid, gid } = statOf(tree.getattr(node));
    const shown = { mode: st.mode, nlink: st.nlink, size: st.size, uid: st.uid, gid: st.gid };
    assert.deepEqual(shown, { mode, nlink, size, uid, gid }, `adopted node ${node}`);
    // Setuid, and setgid of what its group may run; a capability is not in the mode.
    const privileged = (mode & 0o4000) !== 0 || (mode & 0o2010) === 0o2010;
    assert.ok(!privileged || !host.writable.has(node), `node ${node} may be written`);
  }
}
