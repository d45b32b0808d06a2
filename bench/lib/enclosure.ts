// Namespaces of its own for a bench: processes, mounts and, where asked for, the network. Whatever a bench has
// started or mounted goes with them, however it ends: by itself, by Ctrl-C, `timeout` or SIGKILL. What
// does not live here: the orderly way out (workspace.ts), which comes first wherever there is time for it.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { Socket } from 'node:net';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';

/** Names the bench's directory, in the process that runs in the namespaces. */
const MARK = 'FIRSTLIGHT_BENCH_ENCLOSURE';
/** A pipe from outside: it ends when the bench is to end, or nobody is outside any more. */
const LEASE_FD = 3;
/** An orderly end may take this long. */
const END_MS = 60_000;
/** Process 1 of the namespace: waits for the bench, and for what others leave behind. */
const INIT = '"$@"; exit $?';

const directory = process.env[MARK];
// Programs that the bench starts are no benches.
delete process.env[MARK];

/** Directory of this bench's files, where it runs in an enclosure; whoever is outside removes what is left of it. */
export function enclosedDirectory(): string | undefined {
  return directory;
}

/** Calls `end` once when the bench is to end. Does not keep the process alive. */
export function onRelease(end: () => void): void {
  if (directory === undefined) return;
  const lease = new Socket({ fd: LEASE_FD, readable: true, writable: false });
  // Nothing is ever sent: an error is an end as well.
  lease.on('error', () => undefined);
  lease.once('close', end);
  lease.resume();
  lease.unref();
}

function startInside(name: string, network: 'own' | 'shared'): [ChildProcess, string] {
  const made = mkdtempSync(join(process.env.BENCH_DIR ?? tmpdir(), `firstlight-${name}-`));
  const program = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const loopback = ['sh', '-c', 'ip link set lo up && exec "$@"', 'sh'];
  const child = spawn(
    'unshare',
    [
      // Killed with `unshare` is process 1, and with that everything.
      ...['--mount', '--propagation', 'private', '--pid', '--fork', '--kill-child', '--mount-proc'],
      ...(network === 'own' ? ['--net'] : []),
      ...['--', 'bash', '-c', INIT, 'bash'],
      ...(network === 'own' ? loopback : []),
      ...program,
    ],
    // A session of its own: Ctrl-C and `timeout` signal whole process groups, and the bench ends its children in order.
    {
      stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
      detached: true,
      env: { ...process.env, [MARK]: made },
    },
  );
  return [child, made];
}

/**
 * Starts this very program again in namespaces of its own, and ends with its exit code; returns in that second one.
 * Call it first of all. After SIGINT, SIGTERM or SIGHUP the bench has a minute to end; a second one ends it at once.
 * @param network  `own`: a network that has the loopback device alone
 */
export async function enclose(name: string, network: 'own' | 'shared'): Promise<void> {
  if (directory !== undefined) return;
  if (process.getuid?.() !== 0) {
    throw new Error('the benches mount file systems and drop caches: run them as root');
  }
  let asked: NodeJS.Signals | undefined;
  // Before anything is there: they are heard when all of it is.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (asked !== undefined) child.kill('SIGKILL');
      asked ??= signal;
      lease.destroy();
      setTimeout(() => child.kill('SIGKILL'), END_MS).unref();
    });
  }
  const [child, made] = startInside(name, network);
  const lease = child.stdio[LEASE_FD] as Socket;
  // The other end is closed when the bench has ended by itself.
  lease.on('error', () => undefined);
  const [code] = (await once(child, 'exit')) as [number | null];
  rmSync(made, { recursive: true, force: true });
  process.exit(asked === undefined ? (code ?? 1) : 128 + constants.signals[asked]);
}
