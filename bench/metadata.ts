// make bench-metadata: what metadata, opens and mounts cost against kernel overlayfs over the same
// tree, what a mount of a large image costs in time and memory, and what starting the program costs.
// Rows and budgets are explained in docs/PERFORMANCE.md. What does not live here: transfers
// (receive.ts).
import { join } from 'node:path';
import { Fsbench } from './lib/fsbench.ts';
import { contentFile } from './lib/image-contents.ts';
import { machineFacts } from './lib/measure.ts';
import { checkBuilt, startServer, Worker } from './lib/program.ts';
import { RowWriter } from './lib/rows.ts';
import { bigTree, ENTRIES, LARGE_FILE, realImage, unpack } from './lib/trees.ts';
import { Workspace } from './lib/workspace.ts';
import { measureMounts } from './metadata-mounts.ts';
import { measureTree, type Sides } from './metadata-tree.ts';

/** Adds an image, unpacks it for overlayfs, and mounts it in all ways with all of it ready. */
async function prepare(
  space: Workspace,
  worker: Worker,
  portable: Worker,
  name: string,
  tar: string,
): Promise<Sides> {
  process.stderr.write(`preparing ${name}\n`);
  const lower = space.makeDirectory(`${name}-lower`);
  unpack(tar, lower);
  await worker.run('image', 'add', `rootfs:${tar}`, '--name', `${name}:bench`);
  const off = space.makeDirectory(`${name}-off`);
  const overlay = space.makeDirectory(`${name}-rw`);
  const native = space.makeDirectory(`${name}-fuse-native`);
  await worker.run('mount', `${name}:bench`, off, '--rw', 'off', '--wait');
  await worker.run('mount', `${name}:bench`, overlay, '--rw', 'overlay', '--wait');
  const options = ['--rw', 'off', '--session', 'fuse-native', '--wait'];
  await portable.run('mount', `${name}:bench`, native, ...options);
  const fuse = space.makeDirectory(`${name}-rw-fuse`);
  await portable.run('mount', `${name}:bench`, fuse, '--rw', 'fuse', '--wait');
  const seen = space.makeDirectory(`${name}-opens-seen`);
  await portable.run('mount', `${name}:bench`, seen, '--rw', 'off', '--opens', 'seen', '--wait');
  const others = {
    'opens-seen': seen,
    'rw-overlay': overlay,
    'rw-fuse': fuse,
    'fuse-native': native,
  };
  return { lower, baseline: space.mountOverlay(`${name}-overlayfs`, lower), off, others };
}

async function main(space: Workspace): Promise<void> {
  checkBuilt();
  const rows = new RowWriter('metadata');
  const fsbench = new Fsbench();
  const tar = await bigTree();
  const python = `${realImage('python')}/rootfs.tar`;
  process.stderr.write(`${JSON.stringify(machineFacts(space.directory))}\n`);

  const server = await startServer(space, space.makeDirectory('data'));
  const worker = await Worker.start(space, space.makeDirectory('root'), server);
  // A daemon of its own: the memory of the other one is measured.
  const portable = await Worker.start(space, space.makeDirectory('portable-root'), server);

  const real = await prepare(space, worker, portable, 'python', python);
  await measureTree(space, rows, fsbench, { prefix: 'python-', sides: real });
  const big = await prepare(space, worker, portable, 'tree', tar);
  await measureTree(space, rows, fsbench, {
    prefix: '',
    sides: big,
    entries: ENTRIES,
    largeFile: LARGE_FILE,
    largeContent: contentFile(worker.root, join(big.lower, LARGE_FILE)),
  });
  await portable.stop();
  await measureMounts(space, rows, worker, server);
  rows.print();
}

const space = new Workspace('metadata');
try {
  await main(space);
} finally {
  await space.close();
}
