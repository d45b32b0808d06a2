// What the other stages use of this one.
import { openDockerArchive } from './docker-archive.ts';
import { openOciLayout } from './oci-layout.ts';
import type { Source } from './reference.ts';
import { openRegistry, type RegistryOptions } from './registry.ts';
import { openRootfs } from './rootfs.ts';
import type { ImageSource } from './source.ts';

export { openDockerArchive } from './docker-archive.ts';
export { type RegistryAuth, readDockerAuth } from './docker-config.ts';
export { type LayerDone, type MergeOptions, type MergeProgress, mergeImage } from './merge.ts';
export { openOciLayout } from './oci-layout.ts';
export { formatPlatform, hostPlatform, type Platform, parsePlatform } from './platform.ts';
export {
  formatReference,
  parseReference,
  parseSource,
  type Reference,
  type Source,
} from './reference.ts';
export { openRegistry, type RegistryOptions } from './registry.ts';
export { openRootfs } from './rootfs.ts';
export type { ContentSink, ImageSource, LayerBlob } from './source.ts';

/** Opens whatever {@link parseSource} gave. Throws as the opener of its kind does. */
export function openSource(source: Source, options: RegistryOptions): Promise<ImageSource> {
  switch (source.kind) {
    case 'registry':
      return openRegistry(source.reference, options);
    case 'oci':
      return openOciLayout(source.directory, source.tag, options);
    case 'docker-archive':
      return openDockerArchive(source.file, source.tag, options);
    case 'rootfs':
      return openRootfs(source.file, options);
  }
}
