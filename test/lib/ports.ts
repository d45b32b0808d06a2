// Ports of the loopback address for programs that must be told one: below those that the kernel hands out by itself,
// and reserved for this process, so that no test that runs at the same time, of another file or another
// checkout, gets the same one. What can listen on port 0 does.
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer } from 'node:net';

/** The kernel gives out 32768 and more by itself (ip_local_port_range). */
const FIRST_PORT = 15_000;
const PORTS = 17_000;
const TRIES = 200;

/** A TCP port that nobody listens on, and that is this process' to give away until it ends. */
export async function freePort(): Promise<number> {
  for (let i = 0; i < TRIES; i++) {
    const port = FIRST_PORT + Math.floor(Math.random() * PORTS);
    if ((await reserve(port)) && (await canListen(port))) return port;
  }
  throw new Error(`no free port after ${TRIES} tries`);
}

/** The UDP port of the same number is the sign that it is taken: it lasts as long as the process. */
async function reserve(port: number): Promise<boolean> {
  const socket = createSocket({ type: 'udp4', reuseAddr: false });
  try {
    const bound = once(socket, 'listening');
    socket.bind({ port, address: '127.0.0.1', exclusive: true });
    await bound;
  } catch (error) {
    socket.close();
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') return false;
    throw error;
  }
  socket.unref();
  return true;
}

async function canListen(port: number): Promise<boolean> {
  const server = createServer();
  try {
    const listening = once(server, 'listening');
    server.listen(port, '127.0.0.1');
    await listening;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') return false;
    throw error;
  }
  const closed = once(server, 'close');
  server.close();
  await closed;
  return true;
}
