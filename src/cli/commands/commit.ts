// `firstlight commit DIR [NAME:TAG] [--to oci:DIR:TAG]`: an image of what a mount has changed.
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FirstlightError } from '../../errors/errors.ts';
import { parseReference, parseSource, type Source } from '../../image/reference.ts';
import type { ImageSource } from '../../image/source.ts';
import type { OptionValues } from '../commands.ts';
import { type MountChanges, readChanges } from '../commit/changes.ts';
import { type Committed, commitTo } from '../commit/image.ts';
import { checkLayerNames } from '../commit/layer-names.ts';
import type { Context } from '../context.ts';
import { formatBytes, shortDigest } from '../print.ts';
import { uploadLayout } from '../upload.ts';
import { addByServer, IntakeView } from './image-add.ts';

/** Tag in a layout that nobody sees. */
const SCRATCH_TAG = 'commit';

type Layout = Source & { kind: 'oci' };

/** Checked before anything is read. */
interface Wanted {
  place: string;
  name: string | undefined;
  to: (Layout & { tag: string }) | undefined;
  base: Source | undefined;
  comment: string;
}

function wantedOf(args: string[], options: OptionValues): Wanted {
  const [place = '', name] = args;
  if (name !== undefined) parseReference(name);
  const to = options.to === undefined ? undefined : parseSource(options.to as string);
  if (to !== undefined && (to.kind !== 'oci' || to.tag === undefined)) {
    throw new FirstlightError('usage', `--to "${String(options.to)}" is no OCI layout with a tag`, {
      hint: 'write --to oci:DIR:TAG',
    });
  }
  if (name === undefined && to === undefined) {
    throw new FirstlightError('usage', 'there is no place for the new image', {
      hint: 'give NAME:TAG for the server, or --to oci:DIR:TAG',
    });
  }
  const base = options.base === undefined ? undefined : parseSource(options.base as string);
  const comment = (options.comment as string | undefined) ?? '';
  return { place, name, to: to as Wanted['to'], base, comment };
}

async function platformOf(changes: MountChanges): Promise<string> {
  const text = await readFile(join(changes.imageDirectory, 'config.json'), 'utf8');
  const { os, architecture, variant } = JSON.parse(text) as Record<string, string | undefined>;
  return [os, architecture, variant].filter((part) => part !== undefined).join('/');
}

/** Writes the layout that the user wants. */
async function writeTo(
  context: Context,
  changes: MountChanges,
  { to, base, comment }: Wanted & { to: Layout & { tag: string } },
): Promise<Committed> {
  let source: ImageSource | undefined;
  try {
    if (base !== undefined) {
      const { openSource } = await import('../local-server.ts');
      const { splitHostsDirs } = await import('../../image/registry-hosts.ts');
      const hostsDirs = splitHostsDirs(context.settings.text('hosts-dir'));
      source = await openSource(base, await platformOf(changes), hostsDirs, context.signal);
    }
    return await commitTo({
      ...{ changes, directory: to.directory, tag: to.tag, comment, source },
      layersElsewhere: false,
      signal: context.signal,
    });
  } finally {
    await source?.close();
  }
}

/** Sends an image of a layout; the blobs of the old image's layers stay here where the server has them. */
async function send(
  context: Context,
  changes: MountChanges,
  layout: Layout & { tag: string },
  name: string,
  onServer: boolean,
): Promise<void> {
  const view = new IntakeView(context);
  await view.start();
  try {
    const text = await readFile(join(changes.imageDirectory, 'manifest.json'), 'utf8');
    const { layers } = JSON.parse(text) as { layers: { digest: string }[] };
    const known = layers.map(({ digest }) => `blobs/${digest.replace(':', '/')}`);
    const upload = await uploadLayout(layout.directory, layout.tag, new Set(onServer ? known : []));
    const platform = await platformOf(changes);
    const base = onServer ? { base: changes.digest } : {};
    await addByServer(context, layout, { name, platform, upload, ...base }, view);
  } finally {
    view.stop();
  }
}

/** Sends an image whose layout is whole: what the server lacks of it can be sent as well. */
async function sendWhole(
  context: Context,
  changes: MountChanges,
  layout: Layout & { tag: string },
  name: string,
  made: Committed,
): Promise<void> {
  if (made.base === 'packed') return send(context, changes, layout, name, false);
  try {
    await send(context, changes, layout, name, true);
  } catch (error) {
    if (!(error instanceof FirstlightError) || error.kind !== 'not-found') throw error;
    await send(context, changes, layout, name, false);
  }
}

/** Makes the image for the server alone: of the old one only its digest is needed there. */
async function sendNew(
  context: Context,
  changes: MountChanges,
  name: string,
  comment: string,
): Promise<Committed> {
  const directory = await mkdtemp(join(tmpdir(), 'firstlight-commit-'));
  const layout: Layout & { tag: string } = { kind: 'oci', directory, tag: SCRATCH_TAG };
  const options = { changes, directory, tag: SCRATCH_TAG, comment, source: undefined };
  const { signal } = context;
  try {
    try {
      const made = await commitTo({ ...options, layersElsewhere: true, signal });
      await send(context, changes, layout, name, true);
      return made;
    } catch (error) {
      // The server has lost the old image, or is another one: it gets all files.
      if (!(error instanceof FirstlightError) || error.kind !== 'not-found') throw error;
      const made = await commitTo({ ...options, layersElsewhere: false, signal });
      await send(context, changes, layout, name, false);
      return made;
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

function report(context: Context, made: Committed, wanted: Wanted): void {
  const { digest, layer, base } = made;
  const { name, to } = wanted;
  const where = [name, to === undefined ? undefined : `oci:${to.directory}:${to.tag}`];
  const names = where.filter((each) => each !== undefined);
  if (context.json) {
    context.printJson({
      ...{ digest, names, base },
      layer: { digest: layer.digest, diffId: layer.diffId, bytes: layer.bytes },
      entries: layer.entries,
      changedMeanwhile: layer.changed,
    });
    return;
  }
  context.print(
    `${names.join(' ')}  ${shortDigest(digest)}  ${layer.entries} entries, ${formatBytes(layer.bytes)} compressed`,
  );
  if (context.quiet) return;
  for (const path of layer.changed) {
    process.stderr.write(`firstlight: ${path} became shorter while it was read\n`);
  }
  if (base === 'packed') {
    process.stderr.write(
      'firstlight: the files of the old image were packed as a new layer; --base keeps its own layers\n',
    );
  }
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const wanted = wantedOf(args, options);
  const { place, name, to, comment } = wanted;
  const changes = await readChanges(context, place);
  checkLayerNames(changes.upper);
  let made: Committed;
  if (to === undefined) made = await sendNew(context, changes, name!, comment);
  else {
    made = await writeTo(context, changes, { ...wanted, to });
    if (name !== undefined) await sendWhole(context, changes, to, name, made);
  }
  report(context, made, wanted);
  return undefined;
}
