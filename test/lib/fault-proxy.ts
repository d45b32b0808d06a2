// A TCP proxy that misbehaves on demand: cuts connections, holds what goes down, refuses; and that says what it was
// asked for. It runs in the test's own process, so the test must not touch a mount that hangs on it.
//
// A test that needs "a part has arrived, and the rest has not" holds: that stays so for as long as it likes, however
// fast or slow the machine is. What a worker does meanwhile (src/receive): after 3 s of silence it asks again over
// another connection, which is held as well; a connection that has brought nothing for 20 s is given up,
// and the transfer is `retrying` then, with pauses of up to 30 s. It goes on by itself after `flow`.
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { freePort } from './ports.ts';

/** A request as it went up. */
export interface SeenRequest {
  method: string;
  path: string;
  /** The bytes of its Range header, the end exclusive. */
  range: { from: number; to: number } | undefined;
}

/** One connection and its other half. */
interface Pair {
  client: Socket;
  upstream: Socket;
  /** Came from the server and may not go on yet. */
  held: Buffer[];
  /** The server has said all. */
  isEnded: boolean;
  /** The head of a request that is not all there yet. */
  head: string;
}

const REQUEST = /([A-Z]+) (\/\S*) HTTP\/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n/g;
const HEAD_BYTES_MAX = 16 << 10;

export class FaultProxy {
  #server: Server;
  #target: { host: string; port: number };
  #pairs = new Set<Pair>();
  /** Bytes that may go down before it holds. */
  #mayPass = Number.POSITIVE_INFINITY;
  #cutAfterBytes = Number.POSITIVE_INFINITY;
  #port = 0;
  /** Bytes that went from server to client since the start. */
  bytesDown = 0;
  /** Connections accepted since the start. */
  connections = 0;
  /** What was asked for since the start. */
  readonly requests: SeenRequest[] = [];

  private constructor(target: URL) {
    this.#target = { host: target.hostname, port: Number(target.port) };
    this.#server = createServer((client) => this.#accept(client));
  }

  /** Starts a proxy on a free port of the loopback address. */
  static async start(target: string): Promise<FaultProxy> {
    const proxy = new FaultProxy(new URL(target));
    proxy.#port = await freePort();
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

  /** Cuts all connections now. What was held of them is gone. */
  cut(): void {
    for (const { client, upstream } of this.#pairs) {
      client.resetAndDestroy();
      upstream.destroy();
    }
    this.#pairs.clear();
  }

  /**
   * Exactly so many further bytes go down, of all connections together, then none until `flow`. Connections stay open,
   * new ones are accepted and held, and what the clients say goes up. In place of an earlier hold.
   */
  holdAfter(bytes: number): void {
    this.#mayPass = bytes;
    this.#passAll();
  }

  /** Nothing goes down any more until `flow`. */
  stall(): void {
    this.holdAfter(0);
  }

  /** True when all that may go down has gone. */
  get isHolding(): boolean {
    return this.#mayPass === 0;
  }

  flow(): void {
    this.holdAfter(Number.POSITIVE_INFINITY);
  }

  /** The connections there are carry nothing any more, for ever, and nobody is told; new ones work. */
  blackhole(): void {
    for (const { client, upstream } of this.#pairs) {
      client.unpipe(upstream);
      client.removeAllListeners('data');
      client.resume();
      upstream.removeAllListeners('data');
      upstream.removeAllListeners('end');
      upstream.resume();
    }
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
    if (this.#server.listening) await this.down();
  }

  #accept(client: Socket): void {
    this.connections += 1;
    const upstream = connect(this.#target);
    const pair: Pair = { client, upstream, held: [], isEnded: false, head: '' };
    this.#pairs.add(pair);
    const end = () => {
      this.#pairs.delete(pair);
      client.destroy();
      upstream.destroy();
    };
    for (const socket of [client, upstream]) {
      socket.setNoDelay(true);
      // A cut connection is what this proxy is for; both sides end and nothing else.
      socket.on('error', end);
    }
    client.on('close', end);
    client.on('data', (data) => this.#note(pair, data));
    client.pipe(upstream);
    upstream.on('data', (data) => {
      pair.held.push(data);
      this.#pass(pair);
    });
    // What is held of its last words goes down before the end does.
    upstream.on('end', () => {
      pair.isEnded = true;
      this.#pass(pair);
    });
    upstream.on('close', () => {
      if (!pair.isEnded) end();
    });
  }

  #passAll(): void {
    for (const pair of [...this.#pairs]) this.#pass(pair);
  }

  /** Sends down what may go; the server is listened to again when nothing is left. */
  #pass(pair: Pair): void {
    const { client, upstream, held } = pair;
    while (held.length > 0 && this.#mayPass > 0 && this.#pairs.has(pair)) {
      const data = held.shift()!;
      const rest = Math.min(this.#mayPass, this.#cutAfterBytes - this.bytesDown);
      const now = data.subarray(0, rest);
      if (now.length < data.length) held.unshift(data.subarray(now.length));
      this.#mayPass -= now.length;
      this.bytesDown += now.length;
      if (this.bytesDown === this.#cutAfterBytes) {
        this.#cutAfterBytes = Number.POSITIVE_INFINITY;
        client.write(now, () => this.cut());
        held.length = 0;
        upstream.pause();
        return;
      }
      if (!client.write(now)) {
        upstream.pause();
        client.once('drain', () => this.#pass(pair));
        return;
      }
    }
    if (held.length > 0 || this.#mayPass === 0) upstream.pause();
    else upstream.resume();
    if (held.length === 0 && pair.isEnded) client.end();
  }

  /** Finds the requests in what a client says. Bodies are passed over: none looks like a request's head. */
  #note(pair: Pair, data: Buffer): void {
    const text = pair.head + data.toString('latin1');
    let seen = 0;
    for (const { 0: whole, 1: method, 2: path, 3: headers, index } of text.matchAll(REQUEST)) {
      const range = /^range: bytes=(\d+)-(\d+)\r$/im.exec(headers!);
      this.requests.push({
        method: method!,
        path: path!,
        range: range === null ? undefined : { from: Number(range[1]), to: Number(range[2]) + 1 },
      });
      seen = index + whole.length;
    }
    pair.head = text.slice(Math.max(seen, text.length - HEAD_BYTES_MAX));
  }
}

/** Bytes that some requests have asked for, each byte once, however often it was. */
export function askedBytes(requests: SeenRequest[]): number {
  const ranges = requests.flatMap(({ method, range }) =>
    method === 'GET' && range !== undefined ? [range] : [],
  );
  let bytes = 0;
  let end = 0;
  for (const { from, to } of ranges.sort((a, b) => a.from - b.from)) {
    bytes += Math.max(0, to - Math.max(from, end));
    end = Math.max(end, to);
  }
  return bytes;
}
