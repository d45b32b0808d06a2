// The kubelet's side of a containerd: pods, containers and images by the calls of its runtime interface (CRI), as
// crictl and the kubelet make them. Pods use the host's network, so that no CNI plugin is needed. What does not live
// here: containerd itself (containerd.ts), and what is tested.
import { basename, join } from 'node:path';
import { credentials, loadPackageDefinition, type ServiceClientConstructor } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { Containerd } from './containerd.ts';
import type { Stage } from './stage.ts';

/** The enum's value that means: the host's. */
const NODE = 2;

/** Size and files of something on a disk. */
export interface DiskUse {
  /** ms since 1970 */
  at: number;
  mountPoint: string;
  bytes: number;
  inodes: number;
}

interface FilesystemUsage {
  /** ns since 1970 */
  timestamp: number;
  fsId: { mountpoint: string } | null;
  usedBytes: { value: number } | null;
  inodesUsed: { value: number } | null;
}

function diskUse({ timestamp, fsId, usedBytes, inodesUsed }: FilesystemUsage): DiskUse {
  return {
    at: timestamp / 1e6,
    mountPoint: fsId?.mountpoint ?? '',
    bytes: usedBytes?.value ?? 0,
    inodes: inodesUsed?.value ?? 0,
  };
}

type Client = InstanceType<ServiceClientConstructor>;

export class Cri {
  readonly #stage: Stage;
  readonly #runtime: Client;
  readonly #images: Client;
  readonly #pods = new Map<string, object>();

  /** Speaks to a containerd; ends its pods and closes before that ends. */
  constructor(stage: Stage, containerd: Containerd) {
    this.#stage = stage;
    const path = join(import.meta.dirname, 'cri.proto');
    const loaded = loadPackageDefinition(
      loadSync(path, { longs: Number, defaults: true }),
    ) as unknown as {
      runtime: {
        v1: { RuntimeService: ServiceClientConstructor; ImageService: ServiceClientConstructor };
      };
    };
    const { RuntimeService, ImageService } = loaded.runtime.v1;
    const address = `unix://${containerd.address}`;
    this.#runtime = new RuntimeService(address, credentials.createInsecure());
    this.#images = new ImageService(address, credentials.createInsecure());
    stage.onClose(async () => {
      for (const id of [...this.#pods.keys()]) await this.removePod(id);
      this.#runtime.close();
      this.#images.close();
    });
  }

  #call<T>(client: Client, method: string, request: object): Promise<T> {
    return new Promise((resolve, reject) => {
      const calls = client as unknown as Record<
        string,
        (request: object, done: (error: Error | null, answer: T) => void) => void
      >;
      calls[method]!.call(client, request, (error, answer) =>
        error === null ? resolve(answer) : reject(error),
      );
    });
  }

  /** Pulls; the image's id. */
  async pull(image: string): Promise<string> {
    const request = { image: { image } };
    return (await this.#call<{ imageRef: string }>(this.#images, 'PullImage', request)).imageRef;
  }

  /** Names of all images that there are. */
  async images(): Promise<{ id: string; repoTags: string[]; size: number }[]> {
    type Answer = { images: { id: string; repoTags: string[]; size: number }[] };
    return (await this.#call<Answer>(this.#images, 'ListImages', {})).images;
  }

  /** Removes an image under all its names. */
  async removeImage(image: string): Promise<void> {
    await this.#call(this.#images, 'RemoveImage', { image: { image } });
  }

  /** What images take on the disk, by filesystem. */
  async imageFilesystems(): Promise<DiskUse[]> {
    type Answer = { imageFilesystems: FilesystemUsage[] };
    const { imageFilesystems } = await this.#call<Answer>(this.#images, 'ImageFsInfo', {});
    return imageFilesystems.map(diskUse);
  }

  /** Starts a pod in the host's network; its id. */
  async runPod(name: string): Promise<string> {
    // runc and containerd's cgroups know those of the whole machine.
    const uid = `${basename(this.#stage.dir)}-${name}`;
    const config = {
      metadata: { name, uid, namespace: 'default' },
      linux: { securityContext: { namespaceOptions: { network: NODE } } },
    };
    const request = { config };
    type Answer = { podSandboxId: string };
    const { podSandboxId } = await this.#call<Answer>(this.#runtime, 'RunPodSandbox', request);
    this.#pods.set(podSandboxId, config);
    return podSandboxId;
  }

  /** Ends a pod and all its containers, and removes them. */
  async removePod(podSandboxId: string): Promise<void> {
    await this.#call(this.#runtime, 'StopPodSandbox', { podSandboxId });
    await this.#call(this.#runtime, 'RemovePodSandbox', { podSandboxId });
    this.#pods.delete(podSandboxId);
  }

  /** Makes a container of an image in a pod, and starts it; its id. */
  async start(podSandboxId: string, name: string, image: string, command: string[]) {
    const request = {
      podSandboxId,
      config: {
        metadata: { name },
        image: { image },
        command,
        linux: { securityContext: { namespaceOptions: { network: NODE } } },
      },
      sandboxConfig: this.#pods.get(podSandboxId),
    };
    type Answer = { containerId: string };
    const { containerId } = await this.#call<Answer>(this.#runtime, 'CreateContainer', request);
    await this.#call(this.#runtime, 'StartContainer', { containerId });
    return containerId;
  }

  /** Runs a command in a container to its end, which must be a good one; what it printed. */
  async exec(containerId: string, cmd: string[]): Promise<string> {
    type Answer = { stdout: Buffer; stderr: Buffer; exitCode: number };
    const request = { containerId, cmd };
    const { stdout, stderr, exitCode } = await this.#call<Answer>(
      this.#runtime,
      'ExecSync',
      request,
    );
    if (exitCode !== 0) {
      throw new Error(`${cmd.join(' ')} ended with ${exitCode}: ${stderr.toString('utf8')}`);
    }
    return stdout.toString('utf8');
  }

  /** Stops a container, at once, and removes it. */
  async remove(containerId: string): Promise<void> {
    await this.#call(this.#runtime, 'StopContainer', { containerId, timeout: 0 });
    await this.#call(this.#runtime, 'RemoveContainer', { containerId });
  }

  /** What containers have written, by their ids; those that have not been measured yet are left out. */
  async written(): Promise<Map<string, DiskUse>> {
    type Stats = { attributes: { id: string }; writableLayer: FilesystemUsage | null };
    const { stats } = await this.#call<{ stats: Stats[] }>(this.#runtime, 'ListContainerStats', {});
    return new Map(
      stats.flatMap(({ attributes, writableLayer }) =>
        writableLayer === null ? [] : [[attributes.id, diskUse(writableLayer)]],
      ),
    );
  }
}
