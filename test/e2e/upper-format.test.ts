// The format of upper/: what the writable tree wrote, the kernel's overlayfs shows the same over the
// unpacked image; and what overlayfs wrote, the tree shows the same. Random operations on both sides.
//
// A failure prints its seed; FIRSTLIGHT_SEED=N runs that one again.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import fc from 'fast-check';
import type { Spec } from '../../src/delta/testing.ts';
import { ME, type Stage, statOf } from '../../src/tree/rw/testing.ts';
import type { ModelInode } from '../../src/tree/rw/testing-model.ts';
import { image, type Operation, operation } from '../../src/tree/rw/testing-operations.ts';
import { Run } from '../../src/tree/rw/testing-run.ts';

const RUNS = Number(process.env.FIRSTLIGHT_MODEL_RUNS ?? 25);
const seed = Number(process.env.FIRSTLIGHT_SEED ?? Date.now() & 0x7fffffff);
const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;

/** Unpacks an image into a plain directory: the lower layer. */
function unpack(directory: string, entries: Record<string, Spec>, seen: Map<Spec, string>): void {
  for (const [name, spec] of Object.entries(entries)) {
    const path = join(directory, name);
    const known = seen.get(spec);
    if (known !== undefined) {
      linkSync(known, path);
      continue;
    }
    seen.set(spec, path);
    if (spec.entries !== undefined) {
      mkdirSync(path);
      unpack(path, spec.entries, seen);
    } else if (spec.type === 'symlink') symlinkSync(spec.target ?? '', path);
    else if (spec.type === 'fifo') execFileSync('mkfifo', [path]);
    else writeFileSync(path, spec.data ?? '');
    if (spec.xattrs !== undefined)
      execFileSync('setfattr', ['-h', '-n', 'trusted.x', '-v', '0', path]);
    if (spec.type !== 'symlink') {
      chownSync(path, spec.uid ?? 0, spec.gid ?? 0);
      chmodSync(path, spec.mode ?? 0o644);
    } else execFileSync('chown', ['-h', `${spec.uid ?? 0}:${spec.gid ?? 0}`, path]);
    lutimesSync(path, spec.mtimeSec ?? 1, spec.mtimeSec ?? 1);
  }
}

/** The kernel's overlay of the same upper directory. */
class Overlay {
  readonly lower: string;
  readonly merged: string;
  readonly #stage: Stage;

  constructor(stage: Stage, spec: Record<string, Spec>) {
    this.#stage = stage;
    this.lower = join(stage.root, 'lower');
    this.merged = join(stage.root, 'merged');
    mkdirSync(this.lower);
    mkdirSync(this.merged);
    unpack(this.lower, spec, new Map());
  }

  /** Runs `use` with overlayfs over image and upper/. */
  mounted<T>(use: (merged: string) => T): T {
    const { upper, work } = this.#stage;
    const options = `lowerdir=${this.lower},upperdir=${upper},workdir=${work},redirect_dir=on,index=off,metacopy=off`;
    execFileSync('mount', ['-t', 'overlay', 'test', '-o', options, this.merged]);
    try {
      return use(this.merged);
    } finally {
      execFileSync('umount', [this.merged]);
    }
  }
}

/** What a program sees of a tree on disk. */
function dump(directory: string): string[] {
  const xattrs = xattrsBelow(directory);
  const lines: string[] = [];
  const walk = (path: string) => {
    const at = join(directory, path);
    const stat = lstatSync(at);
    const type = stat.mode & S_IFMT;
    const content =
      type === 0o100000 ? readFileSync(at).toString() : type === 0o120000 ? readlinkSync(at) : '';
    const x = xattrs.get(at);
    lines.push(line(path, stat.mode, stat.uid, stat.gid, content, x === undefined ? [] : [x]));
    if (type === S_IFDIR) for (const name of readdirSync(at).sort()) walk(`${path}/${name}`);
  };
  walk('');
  return lines;
}

/** Values of trusted.x, by path. getfattr ends with 1 where some file lacks it, which most do. */
function xattrsBelow(directory: string): Map<string, string> {
  const script = 'getfattr -R -h -P -n trusted.x --absolute-names "$1" 2>/dev/null; true';
  const out = execFileSync('sh', ['-c', script, 'sh', directory], { encoding: 'latin1' });
  const found = new Map<string, string>();
  for (const block of out.split('\n\n')) {
    const name = /^# file: (.*)$/m.exec(block)?.[1];
    const value = /^trusted\.x="(.*)"$/m.exec(block)?.[1];
    if (name !== undefined && value !== undefined) found.set(name, value);
  }
  return found;
}

function line(path: string, mode: number, uid: number, gid: number, content: string, x: string[]) {
  return `${path} ${mode.toString(8)} ${uid}:${gid} ${x} ${content}`;
}

function dumpModel(root: ModelInode): string[] {
  const lines: string[] = [];
  const walk = (path: string, inode: ModelInode) => {
    const content = inode.type === 'symlink' ? inode.target : inode.data.toString();
    lines.push(line(path, inode.mode, inode.uid, inode.gid, content, [...inode.xattrs.values()]));
    for (const [name, child] of [...(inode.children ?? [])].sort()) walk(`${path}/${name}`, child);
  };
  walk('', root);
  return lines;
}

function dumpTree(s: Stage): string[] {
  const lines: string[] = [];
  const walk = (path: string, node: number) => {
    const { mode, uid, gid } = statOf(s.tree.getattr(node));
    const type = mode & S_IFMT;
    let content = '';
    if (type === 0o100000) content = s.readNode(node).toString();
    if (type === 0o120000) content = Buffer.from(s.tree.readlink(node)).toString();
    const x = s.tree.listxattr(node, ME).map((name) => `${s.tree.getxattr(node, name)}`);
    lines.push(line(path, mode, uid, gid, content, x));
    if (type !== S_IFDIR) return;
    const names = Array.from(s.tree.list(node, 0), ({ name }) => name).sort();
    for (const name of names) walk(`${path}/${name}`, s.tree.lookup(node, name)!.node);
  };
  walk('', 1);
  return lines;
}

test.serial('the kernel’s overlayfs shows what the tree wrote', async (t) => {
  t.log(`FIRSTLIGHT_SEED=${seed}`);
  const property = fc.asyncProperty(
    image,
    fc.array(operation, { maxLength: 80, size: 'max' }),
    async (spec, operations) => {
      const run = new Run(spec);
      const overlay = new Overlay(run.stage, spec);
      try {
        for (const next of operations) await run.apply(next);
        await run.reopen();
        run.stage.closeTree();
        assert.deepEqual(overlay.mounted(dump), dumpModel(run.model.root));
      } finally {
        for (const { fd } of run.held) if (fd >= 0) closeSync(fd);
        run.stage.remove();
      }
    },
  );
  const result = await fc.check(property, { numRuns: RUNS, seed });
  if (result.failed) t.log(fc.stringify(result.counterexample), result.errorInstance);
  t.false(result.failed);
});

/** The operation by system calls on a directory; what fails there changes nothing. */
function applyTo(directory: string, next: Operation): void {
  const directories: string[] = [];
  const walk = (path: string) => {
    directories.push(path);
    for (const entry of readdirSync(path, { withFileTypes: true }))
      if (entry.isDirectory()) walk(join(path, entry.name));
  };
  walk(directory);
  directories.sort();
  const of = (at: { directory: number; name: string }) =>
    join(directories[at.directory % directories.length]!, at.name);
  if (!('at' in next)) return;
  const path = of(next.at);
  const there = lstatSync(path, { throwIfNoEntry: false });
  const isFile = there?.isFile() === true;
  try {
    if (next.op === 'create') writeFileSync(path, next.text, { flag: 'wx', mode: next.mode });
    else if (next.op === 'mkdir') mkdirSync(path, { mode: next.mode });
    else if (next.op === 'symlink') symlinkSync('there', path);
    else if (next.op === 'unlink') unlinkSync(path);
    else if (next.op === 'rmdir') rmdirSync(path);
    else if (next.op === 'rename') renameSync(path, of(next.to));
    else if (next.op === 'link') linkSync(path, of(next.to));
    else if (next.op === 'write' && isFile) writeFileSync(path, next.text, { flag: 'a' });
    else if (next.op === 'truncate' && isFile) truncateSync(path, next.bytes);
    else if (next.op === 'chmod' && there && !there.isSymbolicLink()) chmodSync(path, next.mode);
    else if (next.op === 'chown' && there && !there.isSymbolicLink())
      chownSync(path, next.owner, 5);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
  }
}

test.serial('the tree shows what the kernel’s overlayfs wrote', async (t) => {
  t.log(`FIRSTLIGHT_SEED=${seed}`);
  const property = fc.asyncProperty(
    image,
    fc.array(operation, { maxLength: 60, size: 'max' }),
    fc.array(operation, { maxLength: 30, size: 'max' }),
    async (spec, byOverlay, byTree) => {
      const run = new Run(spec);
      const overlay = new Overlay(run.stage, spec);
      try {
        // Some of the tree's own changes are there before.
        for (const next of byTree) await run.apply(next);
        await run.reopen();
        run.stage.closeTree();
        const seen = overlay.mounted((merged) => {
          for (const next of byOverlay) applyTo(merged, next);
          return dump(merged);
        });
        run.stage.tree = run.stage.open();
        assert.deepEqual(dumpTree(run.stage), seen);
      } finally {
        for (const { fd } of run.held) if (fd >= 0) closeSync(fd);
        run.stage.remove();
      }
    },
  );
  const result = await fc.check(property, { numRuns: RUNS, seed });
  if (result.failed) t.log(fc.stringify(result.counterexample), result.errorInstance);
  t.false(result.failed);
});
