// `firstlight daemon`: in the foreground, or as commands start it in the background.
import { spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import type { SnapshotterOptions } from '../../daemon/daemon.ts';
import { logPath } from '../../daemon/paths.ts';
import { FirstlightError } from '../../errors/errors.ts';
import type { OpensChoice } from '../../fuse/opens.ts';
import { splitHostsDirs } from '../../image/registry-hosts.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { errorJson } from '../print.ts';

/** Descriptor on which a background daemon tells its starter how it went. */
const READY_FD = 3;
/** A daemon with many mounts may take a while to take them all away. */
const STOP_TIMEOUT_MS = 30_000;

/** Tells the starter, who reads one line. */
function tell(line: object): void {
  try {
    writeSync(READY_FD, `${JSON.stringify(line)}\n`);
    closeSync(READY_FD);
  } catch {
    // The starter has gone; the daemon is there for the next command all the same.
  }
}

/** Tells systemd (sd_notify(3)) that the service is ready; elsewhere nobody asked. */
async function notifySystemd(context: Context): Promise<void> {
  if ((process.env.NOTIFY_SOCKET ?? '') === '') return;
  const child = spawn('systemd-notify', ['--ready', `--pid=${process.pid}`], { stdio: 'ignore' });
  const code = await new Promise<number | string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (status) => resolve(status ?? 'killed'));
  });
  if (code !== 0) context.note(`firstlight: systemd could not be told: ${code}`);
}

/** What the foreground's daemon is to containerd; undefined where no socket is given. */
function snapshotterOptions({ settings }: Context): SnapshotterOptions | undefined {
  const socket = settings.optional('snapshotter');
  if (socket === undefined) return undefined;
  return {
    socket,
    server: settings.text('server'),
    platform: settings.text('platform'),
    hostsDirs: splitHostsDirs(settings.text('hosts-dir')),
    prepareTimeoutMs: settings.ms('prepare-timeout'),
    waitTimeoutMs: settings.ms('wait-timeout'),
    threads: settings.count('threads'),
    passthrough: settings.flag('passthrough'),
    opens: settings.text('opens') as OpensChoice,
  };
}

/** What the foreground's daemon shows to its server. */
function tokenOf({ settings }: Context): { server: string; path: string } | undefined {
  const path = settings.optional('token-file');
  return path === undefined ? undefined : { server: settings.text('server'), path };
}

/** Tells the daemon to end, and waits until it has. */
async function stop(context: Context): Promise<undefined> {
  const stopped = await call<{ pid: number }>(context, { op: 'stop' }, { start: false });
  if (stopped === undefined) {
    context.note('no daemon runs');
    return undefined;
  }
  const deadline = Date.now() + STOP_TIMEOUT_MS;
  while (isRunning(stopped.pid)) {
    context.signal.throwIfAborted();
    if (Date.now() > deadline) {
      throw new FirstlightError('timeout', `the daemon (process ${stopped.pid}) does not end`, {
        hint: `see ${logPath(context.settings.text('root'))}`,
      });
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return undefined;
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    // ESRCH: it has ended. (EPERM cannot be: it has just answered on a socket of ours.)
    return false;
  }
}

export async function run(
  context: Context,
  _args: string[],
  options: OptionValues,
): Promise<undefined> {
  if (options.stop === true) return stop(context);
  const background = options.background === true;
  const root = context.settings.text('root');
  const { Daemon } = await import('../../daemon/daemon.ts');
  try {
    const daemon = await Daemon.start({
      root,
      version: (await import('../main.ts')).version(),
      // In the foreground it stays until it is told to go.
      idleMs: background ? context.settings.ms('idle') : Number.POSITIVE_INFINITY,
      signal: context.signal,
      connections: Math.max(1, context.settings.count('connections')),
      keepWarmMs: context.settings.ms('keep-warm'),
      keepServer:
        !background && context.settings.isSet('server')
          ? context.settings.text('server')
          : undefined,
      // One in the background is told with each mount.
      token: background ? undefined : tokenOf(context),
      // A command starts a daemon for its own mounts only: containerd's is the service's.
      ...(background
        ? {}
        : {
            snapshotter: snapshotterOptions(context),
            metrics: context.settings.optional('metrics'),
          }),
    });
    if (background) tell({ ready: true });
    else {
      context.note(`firstlight: daemon for ${root} is ready`);
      await notifySystemd(context);
    }
    await daemon.ended;
    return undefined;
  } catch (error) {
    if (background) tell({ error: errorJson(error) });
    throw error;
  }
}
