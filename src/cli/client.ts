// Speaks to the daemon of a root, and starts it where none answers. The protocol's types are in
// daemon/control.ts.
import { closeSync, mkdirSync, openSync, renameSync, statSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import type {
  ControlEvent,
  ControlLine,
  ControlRequest,
  MountRequest,
  MountStatus,
} from '../daemon/control.ts';
import { logPath, socketPath } from '../daemon/paths.ts';
import { FirstlightError, isErrorKind, toFirstlightError } from '../errors/errors.ts';
import type { Context } from './context.ts';
import type { Settings } from './settings.ts';

/** A daemon that does not answer within this time after its start is called broken. */
const START_TIMEOUT_MS = 20_000;
/** A log larger than this is put aside when a daemon starts. */
const LOG_MAX_BYTES = 8 << 20;

/** Connects; undefined where nobody listens. */
function tryConnect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') resolve(undefined);
      else if (error.code === 'EACCES' || error.code === 'EPERM') {
        reject(
          new FirstlightError('permission', `the daemon at ${path} belongs to another user`, {
            hint: 'run as that user, or give another --root',
            cause: error,
          }),
        );
      } else reject(toFirstlightError(error));
    });
  });
}

/** How the start of a daemon came out: it listens, or why not. */
type Started = { ready: true } | { error: { kind: string; message: string; hint?: string } };

/** Makes an error out of one that came as JSON. */
export function errorFrom(error: {
  kind: string;
  message: string;
  hint?: string;
}): FirstlightError {
  return new FirstlightError(
    isErrorKind(error.kind) ? error.kind : 'internal',
    error.message,
    error.hint === undefined ? {} : { hint: error.hint },
  );
}

/** Keeps one old log beside the present one, so that logs end somewhere. */
function rotate(path: string): void {
  const size = statSync(path, { throwIfNoEntry: false })?.size ?? 0;
  if (size > LOG_MAX_BYTES) renameSync(path, `${path}.1`);
}

/** Starts a daemon that outlives this process, and waits until it listens or gives up. */
async function startDaemon(settings: Settings): Promise<Started> {
  const root = settings.text('root');
  const { spawn } = await import('node:child_process');
  try {
    mkdirSync(root, { recursive: true, mode: 0o700 });
  } catch (cause) {
    const e = toFirstlightError(cause);
    throw new FirstlightError(e.kind, `cannot make the root ${root}: ${e.message}`, {
      hint: 'give another --root DIR, or run as root',
      cause,
    });
  }
  let log: number;
  try {
    rotate(logPath(root));
    log = openSync(logPath(root), 'a', 0o600);
  } catch (cause) {
    const e = toFirstlightError(cause);
    throw new FirstlightError(e.kind, `cannot write ${logPath(root)}: ${e.message}`, {
      hint: e.hint ?? 'give another --root DIR',
      cause,
    });
  }
  const script = process.argv[1] ?? '';
  const args = [script, 'daemon', '--background', '--root', root];
  args.push('--idle', `${settings.ms('idle')}ms`, '--log', settings.text('log'));
  const child = spawn(process.execPath, args, {
    cwd: '/',
    detached: true,
    stdio: ['ignore', log, log, 'pipe'],
    env: process.env,
  });
  closeSync(log);
  const pipe = child.stdio[3] as Socket;
  return new Promise((resolve, reject) => {
    let text = '';
    const settle = (started: Started) => {
      clearTimeout(timer);
      pipe.destroy();
      child.unref();
      resolve(started);
    };
    const broken = (message: string): Started => ({
      error: { kind: 'internal', message, hint: `see ${logPath(root)}` },
    });
    const timer = setTimeout(
      () => settle(broken(`the daemon has not answered for ${START_TIMEOUT_MS / 1000} s`)),
      START_TIMEOUT_MS,
    );
    child.once('error', reject);
    pipe.setEncoding('utf8');
    pipe.on('data', (chunk: string) => {
      text += chunk;
      const end = text.indexOf('\n');
      if (end >= 0) settle(JSON.parse(text.slice(0, end)) as Started);
    });
    pipe.on('error', () => settle(broken('the daemon has ended at its start')));
    pipe.on('end', () => settle(broken('the daemon has ended at its start')));
  });
}

/** Connects to the daemon of a root; starts one where none answers and `start` says so. */
async function open(context: Context, start: boolean): Promise<Socket | undefined> {
  const root = context.settings.text('root');
  const path = socketPath(root);
  const deadline = Date.now() + START_TIMEOUT_MS;
  for (;;) {
    const socket = await tryConnect(path);
    if (socket !== undefined || !start) return socket;
    const started = await startDaemon(context.settings);
    // `busy`: another process holds the root. It is a daemon that two commands have started at the
    // same time, or one that is just ending: either the socket answers soon, or the root is free soon.
    if ('error' in started && (started.error.kind !== 'busy' || Date.now() > deadline)) {
      throw errorFrom(started.error);
    }
    if ('error' in started) await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** One request under way. */
export interface Call {
  /** What the daemon says before its answer. */
  onEvent?: (event: ControlEvent) => void;
  /** Start a daemon where none answers (default), or give undefined. */
  start?: boolean;
}

/** The connection ended before the answer. */
class Lost extends FirstlightError {
  constructor(root: string, cause?: unknown) {
    super('internal', 'the daemon has ended before it answered', {
      hint: `see ${logPath(root)}`,
      cause,
    });
  }
}

function exchange<T>(
  socket: Socket,
  request: ControlRequest,
  context: Context,
  onEvent: ((event: ControlEvent) => void) | undefined,
): Promise<T> {
  return new Promise((resolve, reject) => {
    let text = '';
    const lost = (cause?: unknown) => reject(new Lost(context.settings.text('root'), cause));
    const onAbort = () => {
      reject(context.signal.reason);
      socket.destroy();
    };
    if (context.signal.aborted) return onAbort();
    context.signal.addEventListener('abort', onAbort, { once: true });
    const onLine = (line: ControlLine) => {
      if ('event' in line) onEvent?.(line);
      else if ('error' in line) reject(errorFrom(line.error));
      else resolve(line.result as T);
    };
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => {
      text += chunk;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const line = text.slice(0, end);
        text = text.slice(end + 1);
        try {
          onLine(JSON.parse(line) as ControlLine);
        } catch (error) {
          reject(error);
        }
      }
    });
    socket.on('error', lost);
    socket.on('close', () => {
      context.signal.removeEventListener('abort', onAbort);
      lost();
    });
    socket.write(`${JSON.stringify(request)}\n`);
  });
}

/**
 * Asks the daemon, and resolves to its answer; undefined where none runs and `start` is false.
 * @throws FirstlightError what the daemon answered; an Interrupted when a signal came first
 */
export async function call<T>(
  context: Context,
  request: ControlRequest,
  options: Call = {},
): Promise<T | undefined> {
  const start = options.start ?? true;
  for (let attempt = 1; ; attempt++) {
    const socket = await open(context, start);
    if (socket === undefined) return undefined;
    let heard = false;
    try {
      return await exchange<T>(socket, request, context, (event) => {
        heard = true;
        options.onEvent?.(event);
      });
    } catch (error) {
      // It was just ending, being idle, when we connected: nothing was done, so ask its successor.
      if (!(error instanceof Lost) || heard || attempt === 3) throw error;
    } finally {
      socket.destroy();
    }
  }
}

/** A leased mount: it lasts as long as this connection. */
export interface LeasedCall {
  mount: MountStatus;
  /** Resolves when the daemon has ended the connection: after `end`, when all is taken away. */
  closed: Promise<void>;
  /** Gives the lease back. */
  end(): void;
}

/**
 * Asks for a mount that ends with the connection.
 * @throws FirstlightError what the daemon answered; an Interrupted when a signal came first
 */
export async function lease(context: Context, request: MountRequest): Promise<LeasedCall> {
  for (let attempt = 1; ; attempt++) {
    const socket = await open(context, true);
    if (socket === undefined) throw new Lost(context.settings.text('root'));
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    try {
      const mount = await new Promise<MountStatus>((resolve, reject) => {
        const onEvent = (event: ControlEvent) => {
          if (event.event === 'mounted') resolve(event.mount);
        };
        // Its answer comes when the lease is over; before the mount, that is an error.
        exchange(socket, request, context, onEvent).then(
          () => reject(new Lost(context.settings.text('root'))),
          reject,
        );
      });
      return { mount, closed, end: () => socket.end() };
    } catch (error) {
      socket.destroy();
      // As in `call`: a daemon that was just ending has done nothing.
      if (!(error instanceof Lost) || attempt === 3) throw error;
    }
  }
}
