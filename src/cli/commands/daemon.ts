// `firstlight daemon`: in the foreground, or as commands start it in the background.
import { closeSync, writeSync } from 'node:fs';
import { logPath } from '../../daemon/paths.ts';
import { FirstlightError } from '../../errors/errors.ts';
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
    });
    if (background) tell({ ready: true });
    else context.note(`firstlight: daemon for ${root} is ready`);
    await daemon.ended;
    return undefined;
  } catch (error) {
    if (background) tell({ error: errorJson(error) });
    throw error;
  }
}
