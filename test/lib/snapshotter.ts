// The snapshotter with all that is around it in real life: a delta server, a registry, containerd. What does not live
// here: containerd itself (containerd.ts), and what is tested.
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import type { PulledStatus } from '../../src/daemon/control.ts';
import { busyboxLayout } from './busybox-image.ts';
import { type AppImages, appImages, Containerd, push, startRegistry } from './containerd.ts';
import { FaultProxy } from './fault-proxy.ts';
import { type Background, until } from './proc.ts';
import { type Server, Stage } from './stage.ts';

/** What a test of the snapshotter stands on. */
export interface World {
  stage: Stage;
  images: AppImages;
  /** HOST:PORT of the registry. */
  registry: string;
  /** Image of pods' sandboxes, which the delta server does not have. */
  pause: string | undefined;
  server: Server;
  daemon: Background;
  containerd: Containerd;
  /** Value of a metric; 0 where it is not there. */
  metric(name: string, labels?: string): Promise<number>;
}

/** The daemon as its service starts it; resolves when it says that it is ready. */
export async function startDaemon(stage: Stage, args: string[] = []): Promise<Background> {
  const socket = join(stage.dir, 's.sock');
  // A machine under load must not make an ordinary pull of a lazy one.
  const options = ['--metrics', '127.0.0.1:0'];
  if (!args.includes('--prepare-timeout')) options.push('--prepare-timeout', '280s');
  const daemon = stage.start(['daemon', '--snapshotter', socket, ...options, ...args]);
  await until('the daemon is ready', () => {
    if (!daemon.running) throw new Error(`the daemon ended: ${daemon.stderr}`);
    return daemon.stderr.includes('is ready');
  });
  return daemon;
}

/**
 * A delta server that has two versions of an image of a registry, which has another one, too; a daemon and containerd.
 * @param options.through  what the daemon asks in place of the server
 * @param options.pods     whether there is an image for the sandboxes of pods, too
 */
export async function world(
  t: ExecutionContext,
  options: {
    annotations?: boolean;
    daemon?: string[];
    rate?: string;
    through?: (server: Server) => Promise<string>;
    pods?: boolean;
  } = {},
): Promise<World> {
  const stage = await Stage.open(t);
  const images = await appImages(stage.dir);
  const registry = await startRegistry(stage);
  for (const tag of ['v1', 'v2', 'other']) await push(images.layout, tag, `${registry}/app:${tag}`);
  const pause = options.pods === true ? await pushPause(stage, registry) : undefined;
  const server = await stage.serve(options.rate === undefined ? {} : { rate: options.rate });
  for (const tag of ['v1', 'v2']) {
    await stage.must(['image', 'add', `docker://${registry}/app:${tag}`]);
  }
  if (options.through !== undefined) stage.env.FIRSTLIGHT_SERVER = await options.through(server);
  const daemon = await startDaemon(stage, options.daemon);
  const containerd = await Containerd.start(stage, join(stage.dir, 's.sock'), {
    ...(options.annotations !== undefined && { annotations: options.annotations }),
    ...(pause !== undefined && { pause }),
  });
  t.teardown(() => {
    if (!t.passed) t.log(`daemon: ${daemon.stderr.slice(-6000)}`);
  });
  const metric = async (name: string, labels = '') => {
    const url = /"url":"([^"]+)"/.exec(daemon.stderr)?.[1];
    const text = await (await fetch(url!)).text();
    const line = text.split('\n').find((each) => each.startsWith(`${name}${labels} `));
    return Number(line?.split(' ').at(-1) ?? 0);
  };
  return { stage, images, registry, pause, server, daemon, containerd, metric };
}

/** An image that sleeps, on no other one's layers; its name. */
async function pushPause(stage: Stage, registry: string): Promise<string> {
  const config = ['--config.entrypoint', '/bin/sleep', '--config.cmd', '1000000'];
  const layout = await busyboxLayout(join(stage.dir, 'pause'), config);
  await push(layout, 'latest', `${registry}/pause:1`);
  return `${registry}/pause:1`;
}

/** What `ls` says of images that containerd has pulled. */
export async function pulls(stage: Stage): Promise<PulledStatus[]> {
  return (await stage.json<{ pulls: PulledStatus[] }>(['ls'])).pulls;
}

/** A world whose daemon reaches the delta server through a proxy. */
export async function behindProxy(
  t: ExecutionContext,
  options: { daemon?: string[]; stalled?: boolean } = {},
): Promise<World & { proxy: FaultProxy }> {
  const made = Promise.withResolvers<FaultProxy>();
  const w = await world(t, {
    ...(options.daemon && { daemon: options.daemon }),
    through: async ({ url }) => {
      const proxy = await FaultProxy.start(url);
      t.teardown(() => proxy.close());
      if (options.stalled === true) proxy.stall();
      made.resolve(proxy);
      return proxy.url;
    },
  });
  return { ...w, proxy: await made.promise };
}
