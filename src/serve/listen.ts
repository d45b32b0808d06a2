// Addresses to listen on: HOST:PORT in, a URL out.
import type { AddressInfo } from 'node:net';
import { FirstlightError } from '../errors/errors.ts';

/** Parses `HOST:PORT`, `[IPv6]:PORT` or `:PORT` (every address). */
export function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.%]+)\]|([^:[\]\s/]*)):([0-9]{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65535) {
    throw new FirstlightError('usage', `'${text}' is no address to listen on`, {
      hint: 'write HOST:PORT, such as 127.0.0.1:7070 or [::1]:7070',
    });
  }
  const host = match[1] ?? match[2]!;
  return { host: host === '' ? '::' : host, port };
}

/** The URL of a listening server, which one on every address has as the loopback's. */
export function formatUrl(address: AddressInfo | string | null): string {
  if (address === null || typeof address === 'string') throw new Error('not listening on TCP');
  const { address: host, family, port } = address;
  if (host === '0.0.0.0' || host === '::') return `http://127.0.0.1:${port}`;
  return family === 'IPv6' ? `http://[${host}]:${port}` : `http://${host}:${port}`;
}

/** True for an address of {@link parseListen} that only this machine reaches. */
export function isLocal(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host);
}
