// Real containerd, docker-registry and runc around a stage: their own directories and sockets, ended with
// the stage. Pulls go the kubelet's way, by containerd's CRI plugin over gRPC, and containers are started by
// `ctr`. The images are busybox with layers on it, built by umoci. What does not live here: what is tested.
import { mkdir, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { credentials, loadPackageDefinition, type ServiceClientConstructor } from '@grpc/grpc-js';
import { fromJSON } from '@grpc/proto-loader';
import { busyboxImage } from './busybox-image.ts';
import { containerdConfig } from './containerd-config.ts';
import { freePort } from './ports.ts';
import { Background, must, run, until } from './proc.ts';
import { noise } from './small-image.ts';
import type { Stage } from './stage.ts';

/** As much of the kubelet's image interface (CRI, runtime.v1) as a pull needs. */
const CRI = {
  nested: {
    runtime: {
      nested: {
        v1: {
          nested: {
            ImageSpec: { fields: { image: { type: 'string', id: 1 } } },
            PullImageRequest: { fields: { image: { type: 'ImageSpec', id: 1 } } },
            PullImageResponse: { fields: { imageRef: { type: 'string', id: 1 } } },
            RemoveImageRequest: { fields: { image: { type: 'ImageSpec', id: 1 } } },
            RemoveImageResponse: { fields: {} },
            ImageService: {
              methods: {
                PullImage: { requestType: 'PullImageRequest', responseType: 'PullImageResponse' },
                RemoveImage: {
                  requestType: 'RemoveImageRequest',
                  responseType: 'RemoveImageResponse',
                },
              },
            },
          },
        },
      },
    },
  },
};
/** Namespace of everything that the kubelet's interface does. */
const NAMESPACE = 'k8s.io';

/** Debian's registry on a port of its own; its HOST:PORT. */
export async function startRegistry(stage: Stage): Promise<string> {
  const host = `127.0.0.1:${await freePort()}`;
  const config = join(stage.dir, 'registry.yml');
  await writeFile(
    config,
    `version: 0.1
log: {level: info, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: ${join(stage.dir, 'registry')}}
http: {addr: "${host}"}
`,
  );
  const registry = new Background('docker-registry', ['serve', config], { env: stage.env });
  stage.onClose(async () => {
    await registry.kill('SIGTERM');
  });
  await until('the registry answers', async () => {
    if (!registry.running) throw new Error(`docker-registry ended: ${registry.stderr}`);
    return fetch(`http://${host}/v2/`).then(
      () => true,
      () => false,
    );
  });
  return host;
}

/** Three images on one base: `v1` and `v2` differ in their last layer, `other` has a layer of its own. */
export interface AppImages {
  /** OCI layout with tags of these names. */
  layout: string;
  /** Bytes of all layers' blobs, by tag. */
  layerBytes: Record<string, number>;
}

/** Builds the images below `dir`: base 2 MB of programs and 6 MB of noise, 3 MB of library, 1 MB of application. */
export async function appImages(dir: string): Promise<AppImages> {
  const layout = join(dir, 'app-layout');
  await busyboxImage(dir);
  const base = join(dir, 'busybox-root');
  await mkdir(join(base, 'data'), { recursive: true });
  await writeFile(join(base, 'data/base'), noise('base', 6_000_000));
  await writeFile(join(base, 'data/goes'), 'removed by the next layer\n');
  const files: Record<string, Record<string, Buffer | string>> = {
    lib: { 'usr/lib/library': noise('library', 3_000_000), 'data/.wh.goes': '' },
    v1: {
      'app/version': 'one\n',
      'app/same': noise('same', 900_000),
      'app/part': noise('p1', 90_000),
    },
    v2: {
      'app/version': 'two\n',
      'app/same': noise('same', 900_000),
      'app/part': noise('p2', 90_000),
    },
    other: { 'other/file': 'other\n' },
  };
  await must('umoci', ['init', '--layout', layout]);
  await must('umoci', ['new', '--image', `${layout}:base`]);
  await must('umoci', ['config', '--image', `${layout}:base`, '--config.cmd', 'sh']);
  await must('umoci', ['insert', '--image', `${layout}:base`, base, '/']);
  const add = async (from: string, to: string, layer: string) => {
    const tar = join(dir, `${layer}.tar`);
    const root = join(dir, `layer-${layer}`);
    for (const [path, data] of Object.entries(files[layer] ?? {})) {
      await mkdir(join(root, path, '..'), { recursive: true });
      await writeFile(join(root, path), data);
    }
    await must('tar', ['-C', root, '--sort=name', '--numeric-owner', '-cf', tar, '.']);
    const image = ['--image', `${layout}:${from}`, '--tag', to];
    await must('umoci', ['raw', 'add-layer', ...image, tar]);
  };
  await add('base', 'lib', 'lib');
  await add('lib', 'v1', 'v1');
  await add('lib', 'v2', 'v2');
  await add('lib', 'other', 'other');
  const layerBytes: Record<string, number> = {};
  for (const tag of ['v1', 'v2', 'other']) {
    const raw = await must('skopeo', ['inspect', '--raw', `oci:${layout}:${tag}`]);
    const { layers } = JSON.parse(raw) as { layers: { size: number }[] };
    layerBytes[tag] = layers.reduce((sum, { size }) => sum + size, 0);
  }
  return { layout, layerBytes };
}

/** One containerd with its socket, and the client programs that speak to it. */
export class Containerd {
  readonly stage: Stage;
  readonly address: string;
  readonly namespace = NAMESPACE;
  readonly #directory: string;
  readonly #snapshotter: string;
  #process: Background | undefined;
  #images: InstanceType<ServiceClientConstructor> | undefined;

  private constructor(stage: Stage, snapshotter: string) {
    this.stage = stage;
    this.#directory = join(stage.dir, 'containerd');
    this.#snapshotter = snapshotter;
    this.address = join(this.#directory, 'c.sock');
  }

  /**
   * Starts one.
   * @param socket       of the snapshotter under test
   * @param annotations  whether pulls tell the snapshotter which image they are of
   * @param pause        image of pods' sandboxes
   */
  static async start(
    stage: Stage,
    socket: string,
    options: { annotations?: boolean; snapshotter?: string; pause?: string } = {},
  ): Promise<Containerd> {
    const { annotations = true, snapshotter = 'firstlight', pause } = options;
    const containerd = new Containerd(stage, snapshotter);
    const directory = containerd.#directory;
    await mkdir(join(directory, 'cni'), { recursive: true });
    await writeFile(
      join(directory, 'config.toml'),
      await containerdConfig({
        directory,
        address: containerd.address,
        socket,
        snapshots: join(stage.root, 'containerd'),
        snapshotter,
        annotations,
        ...(pause !== undefined && { pause }),
      }),
    );
    stage.onClose(() => containerd.#end());
    await containerd.#begin();
    return containerd;
  }

  async #begin(): Promise<void> {
    const config = join(this.#directory, 'config.toml');
    const process = new Background('containerd', ['--config', config], { env: this.stage.env });
    this.#process = process;
    await until('containerd answers', async () => {
      if (!process.running) throw new Error(`containerd ended: ${process.stderr.slice(-3000)}`);
      return (await run('ctr', ['--address', this.address, 'version'])).code === 0;
    });
    const definition = fromJSON(CRI as never, { longs: Number, defaults: true });
    const loaded = loadPackageDefinition(definition) as unknown as {
      runtime: { v1: { ImageService: ServiceClientConstructor } };
    };
    const { ImageService } = loaded.runtime.v1;
    this.#images = new ImageService(`unix://${this.address}`, credentials.createInsecure());
  }

  /** Ends what it runs, then itself. */
  async #end(): Promise<void> {
    if (this.#process?.running === true) {
      for (const id of await this.containers()) await this.remove(id);
      // Snapshots go when it collects, which this waits for; else some would be left for its next start.
      const images = (await this.ctr(['images', 'ls', '-q'])).split('\n').filter(Boolean);
      if (images.length > 0) await this.ctr(['images', 'rm', '--sync', ...images]);
    }
    await this.stop();
  }

  async stop(): Promise<void> {
    this.#images?.close();
    await this.#process?.kill('SIGTERM');
  }

  /** What it has logged. */
  get log(): string {
    return this.#process?.stderr ?? '';
  }

  /** `ctr ARGS` in the kubelet's namespace, which must succeed. */
  ctr(args: string[], namespace = NAMESPACE): Promise<string> {
    return must('ctr', ['--address', this.address, '--namespace', namespace, ...args], {
      env: this.stage.env,
    });
  }

  /** Pulls as the kubelet does. */
  async pull(image: string): Promise<void> {
    await this.#call('PullImage', { image: { image } });
    await until('containerd knows the image', async () =>
      (await this.ctr(['images', 'ls', '-q'])).split('\n').includes(image),
    );
  }

  /** Removes as the kubelet does, and waits for the collection. */
  async removeImage(image: string): Promise<void> {
    const rows = (await this.ctr(['images', 'ls'])).split('\n').map((line) => line.split(/\s+/));
    // The kubelet's interface keeps the same image under its digests, too.
    const target = rows.find(([name]) => name === image)?.[2];
    const same = rows.filter((row) => row[2] === target).map(([name]) => name!);
    await this.ctr(['images', 'rm', '--sync', ...same]);
  }

  #call(method: string, request: object): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const client = this.#images as unknown as Record<
        string,
        (request: object, done: (error: Error | null, answer: unknown) => void) => void
      >;
      client[method]!.call(client, request, (error, answer) =>
        error === null ? resolve(answer) : reject(error),
      );
    });
  }

  /** A container's name, and its snapshot's: runc knows those of every containerd on the machine by it alone. */
  named(id: string): string {
    const prefix = `${basename(this.stage.dir)}-`;
    return id.startsWith(prefix) ? id : prefix + id;
  }

  /** Runs a command in a new container to its end; what it printed. */
  async run(image: string, id: string, command: string[]): Promise<string> {
    return this.ctr([
      'run',
      '--rm',
      '--net-host',
      '--snapshotter',
      this.#snapshotter,
      image,
      this.named(id),
      ...command,
    ]);
  }

  /** Starts a container that stays. */
  async start(image: string, id: string, command = ['sleep', '100000']): Promise<void> {
    const options = ['--detach', '--net-host', '--snapshotter', this.#snapshotter];
    await this.ctr(['run', ...options, image, this.named(id), ...command]);
  }

  /** Runs a command in a container that runs. */
  exec(id: string, command: string[]): Promise<string> {
    return this.ctr([
      'tasks',
      'exec',
      '--exec-id',
      `e${Date.now()}${Math.random()}`,
      this.named(id),
      ...command,
    ]);
  }

  async containers(): Promise<string[]> {
    return (await this.ctr(['containers', 'ls', '-q'])).split('\n').filter(Boolean);
  }

  /** Kills a container and removes it. */
  async remove(id: string): Promise<void> {
    // It may have no task any more.
    await this.ctr(['tasks', 'delete', '--force', this.named(id)]).catch(() => undefined);
    await this.ctr(['containers', 'delete', this.named(id)]);
  }

  /** Digests of the blobs that it has downloaded. */
  async contents(): Promise<string[]> {
    return (await this.ctr(['content', 'ls', '-q'])).split('\n').filter(Boolean);
  }
}

/** Digests of an image's layers, from a layout. */
export async function layerDigests(layout: string, tag: string): Promise<string[]> {
  const raw = await must('skopeo', ['inspect', '--raw', `oci:${layout}:${tag}`]);
  return (JSON.parse(raw) as { layers: { digest: string }[] }).layers.map(({ digest }) => digest);
}

/** Pushes a tag of a layout. */
export async function push(layout: string, tag: string, to: string): Promise<void> {
  const args = ['copy', '--quiet', '--insecure-policy', '--dest-tls-verify=false'];
  await must('skopeo', [...args, `oci:${layout}:${tag}`, `docker://${to}`]);
}
