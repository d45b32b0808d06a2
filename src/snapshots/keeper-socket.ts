// Where the keeper listens, and whether somebody does. What does not live here: what is said (keeper-protocol.ts).
import { createHash } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';

/** A connection, or undefined where nobody listens. */
export function tryConnect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => resolve(socket));
    socket.once('error', () => resolve(undefined));
  });
}

/** Longest path that a socket address takes is 107 bytes (unix(7)). */
const SOCKET_PATH_MAX_BYTES = 107;

/** Where the keeper of a base directory listens: there, or where that is too long for a socket, below /run. */
export function keeperSocket(base: string): string {
  const path = join(base, 'keeper.sock');
  // Room for the number of a version.
  if (Buffer.byteLength(path) + 4 <= SOCKET_PATH_MAX_BYTES) return path;
  const key = createHash('sha256').update(base).digest('hex').slice(0, 12);
  return join('/run/firstlight', `keeper-${key}.sock`);
}
