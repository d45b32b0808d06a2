// What the session answers for in the tree's place, checked against what the tree says. Only tests import it.
import assert from 'node:assert/strict';
import { fstatSync, readdirSync } from 'node:fs';
import { type Stage, statOf } from './testing.ts';

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
