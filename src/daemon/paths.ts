// Where a daemon and its clients meet: control socket, log and runtime directory of a root.
import { join } from 'node:path';

/** Longest path that a socket address takes on Linux is 107 bytes (unix(7)); some room is left. */
const SOCKET_PATH_MAX_BYTES = 100;

/**
 * Short, private directory of one root for what must not survive a reboot: container state, run
 * configurations, notes of mounts, and the control socket where the root's own path is too long for
 * one. It is /run/firstlight/KEY for root, and firstlight/KEY below $XDG_RUNTIME_DIR or ~/.cache for
 * others (never below /tmp, where anybody could have made it first). KEY is the first 12 hex digits
 * of the root path's sha256.
 */
export function runtimeDir(root: string, env: NodeJS.ProcessEnv = process.env): string {
  // Not imported at the top: most clients never hash, and every import costs them a millisecond.
  const { createHash } = process.getBuiltinModule('node:crypto');
  const key = createHash('sha256').update(root).digest('hex').slice(0, 12);
  if (process.geteuid?.() === 0) return join('/run/firstlight', key);
  return join(env.XDG_RUNTIME_DIR ?? join(env.HOME ?? '/', '.cache'), 'firstlight', key);
}

/** Path of the control socket of a root. */
export function socketPath(root: string, env: NodeJS.ProcessEnv = process.env): string {
  const path = join(root, 'control.sock');
  if (Buffer.byteLength(path) <= SOCKET_PATH_MAX_BYTES) return path;
  return join(runtimeDir(root, env), 'control.sock');
}

/** File that a daemon started in the background writes its log to. */
export function logPath(root: string): string {
  return join(root, 'daemon.log');
}

/** Default root: where a system service keeps its state, or a user's data directory. */
export function defaultRoot(env: NodeJS.ProcessEnv = process.env): string {
  if (process.geteuid?.() === 0) return '/var/lib/firstlight';
  const data = env.XDG_DATA_HOME ?? join(env.HOME ?? '/', '.local/share');
  return join(data, 'firstlight');
}
