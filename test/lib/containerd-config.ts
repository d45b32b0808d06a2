// Which containerd the tests run, and its configuration: Debian's, or another one whose programs stand in the
// directory TEST_CONTAINERD_BIN (docs/TESTING.md). What does not live here: starting it (containerd.ts).
import { delimiter, join } from 'node:path';
import { must } from './proc.ts';

const BIN = process.env.TEST_CONTAINERD_BIN;
// In front of the search path, for this process and all that it starts: containerd finds its shim there, and
// scripts of tests find ctr.
if (BIN !== undefined && !process.env.PATH?.startsWith(BIN + delimiter)) {
  process.env.PATH = `${BIN}${delimiter}${process.env.PATH ?? ''}`;
}

/** What tests need to know of a containerd. */
export interface ContainerdVersion {
  major: number;
  minor: number;
  /** True where ctr and the kubelet's interface can pull by the transfer service, which unpacks while it pulls. */
  transfers: boolean;
}

let version: Promise<ContainerdVersion> | undefined;

/** Version of the containerd that tests start; asked once. */
export function containerdVersion(): Promise<ContainerdVersion> {
  version ??= must('containerd', ['--version']).then((line) => {
    // "containerd github.com/containerd/containerd/v2 v2.2.9 ": its module's path has a version, too.
    const [, major, minor] = / v?(\d+)\.(\d+)\./.exec(line) ?? [];
    if (major === undefined) throw new Error(`containerd says no version: ${line}`);
    return { major: Number(major), minor: Number(minor), transfers: Number(major) >= 2 };
  });
  return version;
}

export interface ContainerdConfig {
  /** Its root, state and socket are below. */
  directory: string;
  /** Its own socket. */
  address: string;
  /** Of the snapshotter under test, and the directory in which that keeps snapshots. */
  socket: string;
  snapshots: string;
  /** What the kubelet's interface uses, and ctr where it is told none. */
  snapshotter: string;
  /** Whether pulls tell the snapshotter which image they are of. */
  annotations: boolean;
  /** Image of pods' sandboxes. */
  pause?: string;
}

/** Nothing that needs devices of its own, or a directory that all containerds of a machine share. */
const DISABLED = [
  'io.containerd.snapshotter.v1.aufs',
  'io.containerd.snapshotter.v1.btrfs',
  'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.zfs',
  'io.containerd.internal.v1.opt',
  'io.containerd.internal.v1.tracing',
  'io.containerd.tracing.processor.v1.otlp',
  'io.containerd.nri.v1.nri',
];

/** A machine that is a container itself may not make its processes less likely victims than they are. */
const RESTRICT = 'restrict_oom_score_adj = true';

function common({ directory, address, socket }: ContainerdConfig): string {
  return `root = "${directory}/root"
state = "${directory}/state"
disabled_plugins = ${JSON.stringify(DISABLED)}
[grpc]
  address = "${address}"
[proxy_plugins.firstlight]
  type = "snapshot"
  address = "${socket}"
`;
}

/** Format 2, of containerd 1.6 and 1.7. */
function formatTwo(config: ContainerdConfig): string {
  const { directory, snapshotter, annotations, pause } = config;
  const cri = 'plugins."io.containerd.grpc.v1.cri"';
  return `version = 2
${common(config)}
[${cri}]
  disable_apparmor = true
  ${RESTRICT}
  stream_server_port = "0"
  stats_collect_period = 1
  ${pause === undefined ? '' : `sandbox_image = "${pause}"`}
[${cri}.containerd]
  snapshotter = "${snapshotter}"
  disable_snapshot_annotations = ${String(!annotations)}
[${cri}.cni]
  bin_dir = "${directory}/cni"
  conf_dir = "${directory}/cni"
`;
}

/**
 * Format 3, of containerd 2.x. Pulls go by the transfer service, as from 2.1 on they do by themselves;
 * TEST_CONTAINERD_PULL=local lets the kubelet's interface pull by itself, as in 2.0.
 */
function formatThree(config: ContainerdConfig): string {
  const { directory, snapshotter, annotations, pause } = config;
  const local = process.env.TEST_CONTAINERD_PULL === 'local';
  const images = 'plugins."io.containerd.cri.v1.images"';
  const runtime = 'plugins."io.containerd.cri.v1.runtime"';
  const unpack = [...new Set([snapshotter, 'overlayfs'])].map(
    (name) => `[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "${process.arch === 'x64' ? 'linux/amd64' : `linux/${process.arch}`}"
  snapshotter = "${name}"
`,
  );
  return `version = 3
${common(config)}
  [proxy_plugins.firstlight.exports]
    root = "${config.snapshots}"
    enable_remote_snapshot_annotations = "${String(annotations)}"
[${images}]
  snapshotter = "${snapshotter}"
  stats_collect_period = 1
  use_local_image_pull = ${String(local)}
  disable_snapshot_annotations = ${String(!(local && annotations))}
${pause === undefined ? '' : `[${images}.pinned_images]\n  sandbox = "${pause}"`}
[${runtime}]
  disable_apparmor = true
  ${RESTRICT}
[${runtime}.cni]
  bin_dirs = ["${join(directory, 'cni')}"]
  conf_dir = "${join(directory, 'cni')}"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
${unpack.join('')}`;
}

/** config.toml for the containerd that tests start. */
export async function containerdConfig(config: ContainerdConfig): Promise<string> {
  const { major } = await containerdVersion();
  return major >= 2 ? formatThree(config) : formatTwo(config);
}
