// Which containerd the tests run: Debian's, or another one whose programs stand in the directory TEST_CONTAINERD_BIN
// (docs/TESTING.md). Its configuration is that of deploy/, with a test's own directories. What does not live here:
// starting it (containerd.ts).
import { readFile } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { REPOSITORY } from './images.ts';
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

/** The text with one part of it, which must be there, replaced everywhere. */
function replaced(text: string, from: string, to: string): string {
  if (!text.includes(from)) throw new Error(`the configuration in deploy/ has no ${from}`);
  return text.replaceAll(from, to);
}

/** What we ship, with another socket and snapshotter; a test's own directories come before its tables. */
async function shipped(name: string, config: ContainerdConfig): Promise<string> {
  const { directory, address, socket, snapshots, snapshotter } = config;
  let text = await readFile(join(REPOSITORY, 'deploy', name), 'utf8');
  text = replaced(text, '/run/firstlight/snapshots.sock', socket);
  text = replaced(text, '/var/lib/firstlight/containerd', snapshots);
  text = text.replace('snapshotter = "firstlight"', `snapshotter = "${snapshotter}"`);
  const first = text.indexOf('[');
  return `${text.slice(0, first)}root = "${directory}/root"
state = "${directory}/state"
disabled_plugins = ${JSON.stringify(DISABLED)}
${text.slice(first)}
[grpc]
  address = "${address}"
`;
}

/** Format 2, of containerd 1.6 and 1.7. */
async function formatTwo(config: ContainerdConfig): Promise<string> {
  const { directory, annotations, pause } = config;
  const said = 'disable_snapshot_annotations = ';
  const text = await shipped('containerd-1.6.toml', config);
  const cri = 'plugins."io.containerd.grpc.v1.cri"';
  return `${replaced(text, `${said}false`, said + String(!annotations))}
[${cri}]
  disable_apparmor = true
  ${RESTRICT}
  stream_server_port = "0"
  stats_collect_period = 1
  ${pause === undefined ? '' : `sandbox_image = "${pause}"`}
[${cri}.cni]
  bin_dir = "${directory}/cni"
  conf_dir = "${directory}/cni"
`;
}

/**
 * Format 3, of containerd 2.x. Pulls go by the transfer service, as from 2.1 on they do by themselves;
 * TEST_CONTAINERD_PULL=local lets the kubelet's interface pull by itself, as 2.0 always does.
 */
async function formatThree(config: ContainerdConfig, minor: number): Promise<string> {
  const { directory, annotations, pause } = config;
  const images = 'plugins."io.containerd.cri.v1.images"';
  const runtime = 'plugins."io.containerd.cri.v1.runtime"';
  let text = await shipped('containerd-2.toml', config);
  text = replaced(text, 'linux/amd64', `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`);
  text = replaced(text, `[${images}]`, `[${images}]\n  stats_collect_period = 1`);
  const local = '# disable_snapshot_annotations = false';
  if (process.env.TEST_CONTAINERD_PULL === 'local' || minor === 0) {
    text = replaced(text, local, annotations ? local.slice(2) : 'use_local_image_pull = true');
  }
  const said = 'enable_remote_snapshot_annotations = ';
  return `${replaced(text, `${said}"true"`, `${said}"${String(annotations)}"`)}
${pause === undefined ? '' : `[${images}.pinned_images]\n  sandbox = "${pause}"`}
[${runtime}]
  disable_apparmor = true
  ${RESTRICT}
[${runtime}.cni]
  bin_dirs = ["${directory}/cni"]
  conf_dir = "${directory}/cni"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
`;
}

/** config.toml for the containerd that tests start. */
export async function containerdConfig(config: ContainerdConfig): Promise<string> {
  const { major, minor } = await containerdVersion();
  return major >= 2 ? formatThree(config, minor) : formatTwo(config);
}
