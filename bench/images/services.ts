// The service images as benches use them: services.json read and checked, an image built where the
// cache lacks it, and the wait for a service to be ready by its own condition. What does not live
// here: how an image is built (build.sh), how a container is started.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { enclosedDirectory } from '../lib/enclosure.ts';

const BUILD = fileURLToPath(new URL('./build.sh', import.meta.url));
const LIST = fileURLToPath(new URL('./services.json', import.meta.url));

/** How a service tells that it is ready. `expect` and `log` are regular expressions. */
export type Ready =
  /** A line of the container's standard output or error. */
  | { log: string }
  /** An answer on a port of 127.0.0.1; the request is sent once the connection stands. */
  | { tcp: number; send: string; expect: string }
  /** The container's own end. */
  | { exit: number };

/** What a bench needs to know of a service; the rest of services.json is for build.sh. */
export interface Service {
  name: string;
  /** Debian packages of the layer below, and of the service's own. */
  runtime: string[];
  packages: string[];
  /** The image's Cmd; whoever gives a command of its own to the container replaces it. */
  command: string[];
  /** Env of the image's config beside PATH. */
  env: string[];
  /** Mounts it needs beside those that every container has, as in an OCI runtime configuration. */
  mounts: { destination: string; type: string; source: string; options: string[] }[];
  ready: Ready;
}

/** `old`: the release alone; `new`: with its security and updates suites. */
export type ServiceVersion = 'old' | 'new';

/** Every service, in the order of services.json. */
export function allServices(): Service[] {
  return JSON.parse(readFileSync(LIST, 'utf8')) as Service[];
}

/** One service; throws where there is none of that name. */
export function serviceNamed(name: string): Service {
  const found = allServices().find((service) => service.name === name);
  if (found === undefined) {
    const names = allServices().map((service) => service.name);
    throw new Error(`there is no service ${name}; there are ${names.join(', ')}`);
  }
  return found;
}

/** Source of a service's image for `firstlight image add`; built on the first call. */
export function serviceImage(name: string, version: ServiceVersion): string {
  const out = execFileSync('bash', [BUILD, name, version], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  return `oci:${out.trim()}:latest`;
}

/** Starts a builder in a process group of its own, so that a signal reaches all that builds, once. */
function startBuild(name: string, version: ServiceVersion): ChildProcess {
  const stdio = ['ignore', 'ignore', 'inherit'] as const;
  return spawn('bash', [BUILD, name, version], { stdio: [...stdio], detached: true });
}

/**
 * Builds the images of services where the cache lacks them, the versions of each at the same time. A signal meanwhile
 * ends the builders, and then this process: call it before anything else is there that has to be ended.
 */
export async function buildServices(names: string[], versions: ServiceVersion[]): Promise<void> {
  // Done already, by whoever started this process.
  if (enclosedDirectory() !== undefined) return;
  const running = new Set<ChildProcess>();
  let asked = false;
  const end = () => {
    asked = true;
    for (const builder of running) process.kill(-builder.pid!, 'SIGTERM');
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, end);
  const build = async (name: string, version: ServiceVersion) => {
    const builder = startBuild(name, version);
    running.add(builder);
    const [code] = (await once(builder, 'exit')) as [number | null];
    running.delete(builder);
    return code === 0 ? [] : [`${name}-${version}`];
  };
  for (const name of names) {
    const failed = await Promise.all(versions.map((version) => build(name, version)));
    if (asked) process.exit(130);
    if (failed.flat().length > 0)
      throw new Error(`could not be built: ${failed.flat().join(', ')}`);
  }
  for (const signal of signals) process.off(signal, end);
}

/** A started container, as far as the wait for it needs to know. */
export interface Started {
  stdout: Readable;
  stderr: Readable;
  /** Resolves to its exit code when it has ended. */
  ended: Promise<number | null>;
}

/** One try: true where the answer is the expected one. */
function askOnce(port: number, send: string, expect: RegExp): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port, noDelay: true });
    let seen = '';
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    // The server is up and its code still on the way: the answer takes as long as it takes.
    socket.setTimeout(60_000, () => end(false));
    socket.once('connect', () => socket.write(send));
    socket.on('data', (data) => {
      seen += data.toString('latin1');
      if (expect.test(seen)) end(true);
    });
    // Nobody listens yet: that is what is asked.
    socket.once('error', () => end(false));
    socket.once('close', () => end(false));
  });
}

async function answered(
  ready: { tcp: number; send: string; expect: string },
  stop: AbortSignal,
): Promise<void> {
  const expect = new RegExp(ready.expect);
  while (!(await askOnce(ready.tcp, ready.send, expect))) {
    if (stop.aborted) return;
    await sleep(1);
  }
}

function logged(pattern: string, streams: Readable[]): Promise<void> {
  const expect = new RegExp(pattern);
  return new Promise((resolve) => {
    for (const stream of streams) {
      let line = '';
      stream.on('data', (data: Buffer | string) => {
        line += data.toString();
        if (expect.test(line)) resolve();
        line = line.slice(line.lastIndexOf('\n') + 1);
      });
    }
  });
}

/**
 * Waits until a service is ready; call it in the network namespace of the container.
 * @param output  what the container has printed, for the error's text
 * @returns the moment, ms since 1970
 * @throws where the container ends first, or is not ready in time
 */
export async function waitReady(
  service: Service,
  container: Started,
  options: { timeoutMs: number; output: () => string },
): Promise<number> {
  const { ready } = service;
  const stop = new AbortController();
  const failed = (why: string): never => {
    throw new Error(`${service.name} ${why}; it printed: ${options.output().slice(-2000)}`);
  };
  const late = sleep(options.timeoutMs, undefined, { signal: stop.signal }).then(
    () => failed(`is not ready after ${options.timeoutMs} ms`),
    // Ended by the finally below: somebody else has won.
    () => undefined,
  );
  const over = container.ended.then((code) => {
    if (!('exit' in ready) || code !== ready.exit) failed(`ended with ${code} before it was ready`);
  });
  const races: Promise<unknown>[] = [late, over];
  if ('tcp' in ready) races.push(answered(ready, stop.signal));
  if ('log' in ready) races.push(logged(ready.log, [container.stdout, container.stderr]));
  // Of the losers nobody wants to hear.
  for (const race of races) race.catch(() => {});
  try {
    await Promise.race(races);
    return Date.now();
  } finally {
    stop.abort();
  }
}
