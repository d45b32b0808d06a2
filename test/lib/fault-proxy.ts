// A TCP proxy that misbehaves on demand: cuts connections, stalls, limits the rate, refuses.
// It runs in the test's own process, so the test must not touch a mount that hangs on it.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

export class FaultProxy {
  #server: Server;
  #target: { host: string; port: number };
  #pairs = new Set<[client: Socket, upstream: Socket]>();
  #stalled = false;
  #bytesPerSecond = 0;
  #cutAfterBytes = Number.POSITIVE_INFINITY;
  #port = 0;
  /** Bytes that went from server to client since the start. */
  bytesDown = 0;
  /** Connections accepted since the start. */
  connections = 0;

  private constructor(target: URL) {
    this.#target = { host: target.hostname, port: Number(target.port) };
    this.#server = createServer((client) => this.#accept(client));
  }

  /** Starts a proxy on a free port of the loopback address. */
  static async start(target: string): Promise<FaultProxy> {
    const proxy = new FaultProxy(new URL(target));
    await proxy.up();
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Where new connections go from now on. */
  retarget(url: string): void {
    const { hostname, port } = new URL(url);
    this.#target = { host: hostname, port: Number(port) };
  }

  /** Cuts every connection once this many further bytes have gone down; later ones pass whole. */
  cutAfter(bytes: number): void {
    this.#cutAfterBytes = this.bytesDown + bytes;
  }

  /** Cuts all connections now. */
  cut(): void {
    for (const [client, upstream] of this.#pairs) {
      client.resetAndDestroy();
      upstream.destroy();
    }
    this.#pairs.clear();
  }

  /** Nothing goes down any more, and connections stay open, until `flow`. */
  stall(): void {
    this.#stalled = true;
    for (const [, upstream] of this.#pairs) upstream.pause();
  }

  flow(): void {
    this.#stalled = false;
    for (const [, upstream] of this.#pairs) upstream.resume();
  }

  /** The connections there are carry nothing any more, for ever, and nobody is told; new ones work. */
  blackhole(): void {
    for (const [client, upstream] of this.#pairs) {
      client.unpipe(upstream);
      client.removeAllListeners('data');
      client.resume();
      upstream.removeAllListeners('data');
      upstream.resume();
    }
  }

  /** At most this many bytes a second go down, for each connection; 0 = no limit. */
  limit(bytesPerSecond: number): void {
    this.#bytesPerSecond = bytesPerSecond;
  }

  /** Refuses connections, and cuts those there are. */
  async down(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    this.cut();
    await closed;
  }

  /** Listens (again, on the same port). */
  async up(): Promise<void> {
    this.#server.listen(this.#port, '127.0.0.1');
    await once(this.#server, 'listening');
    this.#port = (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    this.flow();
    if (this.#server.listening) await this.down();
  }

  #accept(client: Socket): void {
    this.connections += 1;
    const upstream = connect(this.#target);
    const pair: [Socket, Socket] = [client, upstream];
    this.#pairs.add(pair);
    const end = () => {
      this.#pairs.delete(pair);
      client.destroy();
      upstream.destroy();
    };
    for (const socket of pair) {
      socket.setNoDelay(true);
      // A cut connection is what this proxy is for; both sides end and nothing else.
      socket.on('error', end);
      socket.on('close', end);
    }
    client.pipe(upstream);
    upstream.on('data', (data) => this.#down(client, upstream, data));
    if (this.#stalled) upstream.pause();
  }

  #down(client: Socket, upstream: Socket, data: Buffer): void {
    const rest = this.#cutAfterBytes - this.bytesDown;
    if (data.length >= rest) {
      this.bytesDown += rest;
      this.#cutAfterBytes = Number.POSITIVE_INFINITY;
      client.write(data.subarray(0, rest), () => this.cut());
      return;
    }
    this.bytesDown += data.length;
    if (!client.write(data)) {
      upstream.pause();
      client.once('drain', () => this.#stalled || upstream.resume());
    }
    if (this.#bytesPerSecond > 0) {
      upstream.pause();
      const ms = (data.length / this.#bytesPerSecond) * 1000;
      setTimeout(() => this.#stalled || upstream.resume(), ms);
    }
  }
}
