// Holds a tree that the portable session has mounted against what umoci makes of the same image, within
// the limits that docs/SEMANTICS.md names.
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { listTree, treeDifference } from './images.ts';
import { run } from './proc.ts';
import type { Stage } from './stage.ts';

/** A tree's list with what the portable session cannot show taken out. */
function withinLimits(list: string): string {
  const lines: string[] = [];
  for (const line of list.split('\n')) {
    if (line === '') continue;
    const entry = JSON.parse(line) as Record<string, unknown>;
    // Names that are no UTF-8 are left out, with all that is below them; such targets cannot be read.
    if (String(entry.path).includes('\\x') || String(entry.target).includes('\\x')) continue;
    delete entry.xattrs;
    // JSON reads the ns inexactly; ms are all that is shown, and nothing before 1970.
    const ns = BigInt(/"mtime_ns": (-?\d+)/.exec(line)![1]!);
    entry.mtime_ns = ns < 0n ? '0' : String(ns / 1_000_000n);
    lines.push(JSON.stringify(entry));
  }
  return lines.join('\n');
}

/** What is compared. */
export interface PortableTree {
  /** As on the command line. */
  source: string;
  /** The tree as umoci unpacks it. */
  expected: string;
  /** A symlink whose target is no UTF-8. */
  bytes: string;
}

/** Mounts an image by the portable session and compares all that can be seen of it. */
export async function comparePortable(
  t: ExecutionContext<unknown>,
  stage: Stage,
  { source, expected, bytes }: PortableTree,
): Promise<void> {
  await stage.serve();
  await stage.addImage(source, 'image:test');
  const dir = await stage.mount('image:test', ['--rw', 'off', '--session', 'fuse-native']);
  // Listing begins while contents are still arriving: what it reads, it waits for.
  const seen = withinLimits(await listTree(dir, ['--no-xattr', '--skip', bytes]));
  const target = await run('readlink', ['-v', join(dir, bytes)]);
  t.regex(
    target.stderr,
    /Input\/output error/,
    'a target that is no UTF-8 is an error, not another',
  );
  t.deepEqual(treeDifference(withinLimits(expected), seen), []);
  const touched = await run('touch', [join(dir, 'new')]);
  t.regex(touched.stderr, /Read-only file system/);
  const { session, features } = await stage.mountStatus(dir);
  t.is(session, 'fuse-native');
  t.is(features?.transport, 'fuse-native');
  await stage.must(['umount', dir]);
}
