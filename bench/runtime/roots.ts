// The root file systems that are compared: the same image through firstlight and unpacked under kernel
// overlayfs, all of it there before a clock starts. What does not live here: what runs in them.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { serviceImage } from '../images/services.ts';
import type { Worker } from '../lib/program.ts';
import type { Workspace } from '../lib/workspace.ts';

/** Ways to have a root. */
export type Side = 'overlayfs' | 'firstlight' | 'firstlight-rw-fuse';

/** What an image's config says of running it. */
export interface ImageConfig {
  Entrypoint?: string[];
  Cmd?: string[];
  Env?: string[];
  User?: string;
  WorkingDir?: string;
}

/** Roots of one image, by side. */
export interface Roots {
  config: ImageConfig;
  directories: Partial<Record<Side, string>>;
}

/** Unpacks an image with umoci; what firstlight has no part in. */
function unpackImage(space: Workspace, name: string, layout: string): string {
  const bundle = join(space.makeDirectory('unpacked'), name);
  if (!existsSync(bundle)) {
    execFileSync('umoci', ['unpack', '--image', layout.replace(/^oci:/, ''), bundle], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
  }
  return join(bundle, 'rootfs');
}

function configOf(layout: string): ImageConfig {
  const text = execFileSync('skopeo', ['inspect', '--config', layout], { encoding: 'utf8' });
  return (JSON.parse(text) as { config?: ImageConfig }).config ?? {};
}

/** Makes every root of a service's image. @param sides  those that are wanted */
export async function makeRoots(
  space: Workspace,
  worker: Worker,
  name: string,
  sides: Side[],
): Promise<Roots> {
  const layout = serviceImage(name, 'new');
  const directories: Roots['directories'] = {};
  if (sides.includes('overlayfs')) {
    directories.overlayfs = space.mountOverlay(`${name}-overlay`, unpackImage(space, name, layout));
  }
  const mine = sides.filter((side) => side !== 'overlayfs');
  if (mine.length > 0) {
    await worker.run('image', 'add', layout, '--name', `${name}:runtime`);
  }
  for (const side of mine) {
    const directory = space.makeDirectory(`${name}-${side}`);
    const rw = side === 'firstlight' ? 'overlay' : 'fuse';
    await worker.run('mount', `${name}:runtime`, directory, '--rw', rw, '--wait');
    directories[side] = directory;
  }
  return { config: configOf(layout), directories };
}

/** User databases of a root, read on the unpacked side: the bench never touches a mount of firstlight. */
export function userFiles(unpacked: string): { passwd: string; group: string } {
  const read = (path: string) => readFileSync(join(unpacked, path), 'latin1');
  return { passwd: read('etc/passwd'), group: read('etc/group') };
}
