// `image` commands with --data: the server's store, without a server.
import type { ImageSummary, IntakeEvent } from '../delta/protocol.ts';
import { openDockerArchive } from '../image/docker-archive.ts';
import { openOciLayout } from '../image/oci-layout.ts';
import type { Source } from '../image/reference.ts';
import { openRegistry } from '../image/registry.ts';
import { openRootfs } from '../image/rootfs.ts';
import type { ImageSource } from '../image/source.ts';
import { makeLogger } from '../log/log.ts';
import { type ImageStore, withStore as withImageStore } from '../serve/image-store.ts';

/**
 * Runs `work` on the store below `dataDir`.
 * @throws FirstlightError `busy` where a server has it open
 */
export function withStore<T>(dataDir: string, work: (store: ImageStore) => Promise<T>): Promise<T> {
  return withImageStore({ dataDir, log: makeLogger('serve') }, work);
}

/** Opens an image where a user has named it. */
export function openSource(
  source: Source,
  platform: string,
  hostsDirs: string[],
  signal: AbortSignal,
): Promise<ImageSource> {
  switch (source.kind) {
    case 'registry':
      return openRegistry(source.reference, { platform, hostsDirs, signal });
    case 'oci':
      return openOciLayout(source.directory, source.tag, { platform });
    case 'docker-archive':
      return openDockerArchive(source.file, source.tag, { platform });
    case 'rootfs':
      return openRootfs(source.file, { platform });
  }
}

/** How `addLocal` takes an image in. */
export interface AddOptions {
  name: string | undefined;
  platform: string;
  /** Where registries' mirrors and certificates are looked for. */
  hostsDirs: string[];
  signal: AbortSignal;
  onEvent(event: IntakeEvent): void;
}

/** Takes a source into the store below `dataDir`. */
export function addLocal(
  dataDir: string,
  source: Source,
  options: AddOptions,
): Promise<ImageSummary> {
  return withStore(dataDir, (store) =>
    store.add({
      open: (signal) => openSource(source, options.platform, options.hostsDirs, signal),
      name: options.name,
      signal: options.signal,
      onEvent: options.onEvent,
    }),
  );
}
