// `firstlight status [DIR]`: how far the images of the mounts have arrived.
import type { DaemonStatus, MountStatus } from '../../daemon/control.ts';
import { FirstlightError } from '../../errors/errors.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { resolveExistingMount } from '../mount-point.ts';
import { formatBytes, formatMs } from '../print.ts';

function since(start: number, at: number | null): string {
  return at === null ? '-' : `+${formatMs(Math.max(0, at - start))}`;
}

/** One mount in words, several lines. */
export function describe(mount: MountStatus, now: number): string {
  const { transfer, stats } = mount;
  const share = transfer.bytes === 0 ? 100 : (100 * transfer.bytesDone) / transfer.bytes;
  const start = transfer.firstFrameAt;
  // Until all is there, the newest frame is not the last one.
  const lastFrameAt = transfer.state === 'complete' ? mount.lastFrameAt : null;
  const end = transfer.lastFrameAt ?? now;
  const rate =
    start !== null && end > start
      ? `, ${formatBytes((transfer.bytesDone * 1000) / (end - start))}/s`
      : '';
  const lines = [
    `${mount.directory}  ${mount.image}  (${mount.platform}, rw ${mount.rw}, ${mount.state})`,
    `  transfer  ${transfer.state}, ${share.toFixed(0)}%: ${formatBytes(transfer.bytesDone)} of ${formatBytes(transfer.bytes)}, ${transfer.framesDone} of ${transfer.frames} frames${rate}, ${transfer.retries} retries`,
    `  times     header ${since(mount.requestedAt, mount.headerAt)}, mounted ${since(mount.requestedAt, mount.mountedAt)}, first read ${since(mount.requestedAt, mount.firstReadAt)}, last frame ${since(mount.requestedAt, lastFrameAt)}`,
  ];
  if (stats !== null) {
    lines.push(
      `  requests  ${stats.lookups} lookups, ${stats.opens} opens (${stats.passthroughOpens} passthrough)${stats.opensUnseen ? ', unseen now' : ''}, ${stats.reads} reads; ${stats.waits} waits of ${formatMs(stats.waitedMs)} in all, ${mount.waiting} now, ${stats.timeouts} timed out`,
    );
  }
  if (transfer.error !== null) lines.push(`  error     ${transfer.error}`);
  return lines.join('\n');
}

async function follow(context: Context, directory: string | undefined): Promise<MountStatus[]> {
  const request = {
    op: 'status',
    follow: true,
    ...(directory === undefined ? {} : { directory }),
  } as const;
  if (context.json || context.quiet || process.stderr.isTTY !== true) {
    const onEvent = (event: { event: string }) => {
      if (context.json) context.printJson(event);
    };
    return (await call<MountStatus[]>(context, request, { start: false, onEvent })) ?? [];
  }
  const { TransferBar } = await import('../progress.ts');
  const bar = new TransferBar();
  try {
    const mounts = await call<MountStatus[]>(context, request, {
      start: false,
      onEvent: (event) => {
        if (event.event === 'status') bar.update(event.mounts);
      },
    });
    bar.update(mounts ?? []);
    return mounts ?? [];
  } finally {
    bar.stop();
  }
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const [path] = args;
  const directory = path === undefined ? undefined : resolveExistingMount(path);
  const mounts =
    options.follow === true
      ? await follow(context, directory)
      : ((await call<MountStatus[]>(
          context,
          { op: 'status', ...(directory === undefined ? {} : { directory }) },
          { start: false },
        )) ?? []);
  if (path !== undefined && mounts.length === 0) {
    throw new FirstlightError('not-found', `${path} is not mounted by firstlight`, {
      hint: 'see firstlight ls',
    });
  }
  if (context.json) {
    const daemon = (await call<DaemonStatus>(context, { op: 'ping' }, { start: false })) ?? null;
    context.printJson({ daemon, mounts });
    return undefined;
  }
  if (mounts.length === 0) context.note('nothing is mounted');
  const now = Date.now();
  for (const mount of mounts) context.print(describe(mount, now));
  return undefined;
}
