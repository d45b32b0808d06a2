// The systems that are compared. A further one is a class that implements System (system.ts) and an
// entry here; those whose programs this machine lacks are left out, and said so.
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Workspace } from '../lib/workspace.ts';
import type { Wan } from '../wan/wan.ts';
import { ContainerdSystem } from './containerd.ts';
import { DeltaSite } from './delta-site.ts';
import { DownloadSystem } from './download.ts';
import { FirstlightSystem } from './firstlight.ts';
import type { System } from './system.ts';

/** Every system that can run here. @param cache  kept between runs, for the same images and sources */
export function availableSystems(space: Workspace, wan: Wan, cache: string): System[] {
  const site = new DeltaSite(space, wan, cache);
  const registry = join(cache, 'registry');
  mkdirSync(registry, { recursive: true });
  const systems: System[] = [
    new FirstlightSystem(space, wan, site, {
      name: 'firstlight-tree',
      order: 'tree',
      modes: ['deploy'],
      kept: false,
    }),
    new FirstlightSystem(space, wan, site, {
      name: 'firstlight-traced',
      order: 'traced',
      modes: ['deploy', 'update', 'local'],
      kept: false,
    }),
    new FirstlightSystem(space, wan, site, {
      name: 'firstlight-traced-kept',
      order: 'traced',
      modes: ['deploy', 'update'],
      kept: true,
    }),
    new FirstlightSystem(space, wan, site, {
      name: 'firstlight-traced-warm',
      order: 'traced',
      modes: ['update'],
      kept: true,
      warm: true,
    }),
    new DownloadSystem(space, wan, site),
  ];
  const missing = ContainerdSystem.missing();
  if (missing === undefined) systems.unshift(new ContainerdSystem(space, wan, registry));
  else process.stderr.write(`containerd is left out: ${missing} is not installed\n`);
  return systems;
}
