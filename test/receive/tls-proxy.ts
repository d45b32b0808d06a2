// TLS before a server that speaks plain HTTP, as an operator puts it there, with an authority of the test's own.
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { type AddressInfo, connect } from 'node:net';
import { join } from 'node:path';
import { createServer, type TLSSocket } from 'node:tls';
import { promisify } from 'node:util';

const run = promisify(execFile);

async function openssl(cwd: string, ...words: string[]): Promise<void> {
  await run('openssl', words.join(' ').split(' '), { cwd });
}

/** Files that openssl has made. */
export interface Certificates {
  /** The authority's certificate. */
  authority: string;
  /** Of 127.0.0.1. */
  certificate: string;
  key: string;
}

export async function makeCertificates(dir: string): Promise<Certificates> {
  const curve = '-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes';
  await openssl(dir, `req -x509 ${curve} -days 2 -subj /CN=authority -keyout ca.key -out ca.crt`);
  await writeFile(join(dir, 'ext'), 'subjectAltName=IP:127.0.0.1\n');
  await openssl(dir, `req ${curve} -subj /CN=server -keyout server.key -out server.csr`);
  await openssl(
    dir,
    'x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt',
  );
  const path = (name: string) => join(dir, name);
  return { authority: path('ca.crt'), certificate: path('server.crt'), key: path('server.key') };
}

/**
 * Answers for a server over TLS; ends with the test.
 * @returns its URL, and the protocols that connections have chosen
 */
export async function startTlsProxy(
  t: { teardown(fn: () => unknown): void },
  target: string,
  { certificate, key }: Certificates,
): Promise<{ url: string; protocols: Set<string> }> {
  const { hostname, port } = new URL(target);
  const protocols = new Set<string>();
  const sockets = new Set<TLSSocket>();
  const server = createServer(
    // One that would rather speak HTTP/2, as many do.
    {
      cert: await readFile(certificate),
      key: await readFile(key),
      ALPNProtocols: ['h2', 'http/1.1'],
    },
    (client) => {
      protocols.add(String(client.alpnProtocol));
      sockets.add(client);
      const upstream = connect(Number(port), hostname);
      client.on('close', () => upstream.destroy()).on('error', () => upstream.destroy());
      upstream.on('close', () => client.destroy()).on('error', () => client.destroy());
      client.pipe(upstream).pipe(client);
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return { url: `https://127.0.0.1:${(server.address() as AddressInfo).port}`, protocols };
}
