// `firstlight run NAME:TAG [-- CMD...]`: a container in the foreground. The mount is leased: whatever
// ends this process, the daemon kills the container and takes everything away.
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { MountStatus } from '../../daemon/control.ts';
import { runtimeDir } from '../../daemon/paths.ts';
import { FirstlightError } from '../../errors/errors.ts';
import { type LeasedCall, lease } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import { readInRoot, resolveInRoot } from '../container/root-path.ts';
import { Container, findRuntime, runtimeCommand, startFailureCode } from '../container/runtime.ts';
import { type ImageConfig, makeSpec, openFilesLimit, type SpecOptions } from '../container/spec.ts';
import { resolveUser } from '../container/user.ts';
import type { Context } from '../context.ts';
import { checkMountPermission, mountRequest } from '../mount-request.ts';

/** A container's id is its host name, too. */
const ID = /^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$/;

function containerId(options: OptionValues): string {
  const id = (options.name as string | undefined) ?? randomBytes(6).toString('hex');
  if (ID.test(id)) return id;
  throw new FirstlightError('usage', `--name "${id}" is no container name`, {
    hint: 'use letters, digits and hyphens, at most 63',
  });
}

/** Makes the bundle's directory, which also reserves the id. */
async function makeBundle(path: string, id: string): Promise<void> {
  await mkdir(join(path, '..'), { recursive: true, mode: 0o700 });
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause;
    throw new FirstlightError('exists', `there is a container ${id} already`, {
      hint: 'give another --name, or end that one',
      cause,
    });
  }
}

/** Copies of this machine's resolver files, for the container to use and to change. */
async function hostFiles(
  bundle: string,
  hostname: string,
  root: string,
  readonlyRoot: boolean,
): Promise<SpecOptions['binds']> {
  const hosts = (
    await readFile('/etc/hosts', 'utf8').catch(() => '127.0.0.1 localhost\n')
  ).trimEnd();
  const files: [string, string][] = [
    ['/etc/resolv.conf', await readFile('/etc/resolv.conf', 'utf8').catch(() => '')],
    ['/etc/hosts', `${hosts}\n127.0.1.1 ${hostname}\n`],
    ['/etc/hostname', `${hostname}\n`],
  ];
  const binds: SpecOptions['binds'] = [];
  for (const [destination, text] of files) {
    // The runtime makes a missing mount point itself, where the root can be written to.
    if (readonlyRoot && (await resolveInRoot(root, destination)) === undefined) continue;
    const source = join(bundle, destination.slice('/etc/'.length));
    await writeFile(source, text, { mode: 0o644 });
    binds.push({ source, destination });
  }
  return binds;
}

async function writeSpec(
  context: Context,
  mount: MountStatus,
  bundle: string,
  id: string,
  command: string[],
  terminal: boolean,
): Promise<void> {
  const hex = mount.digest.replace('sha256:', '');
  const path = join(context.settings.text('root'), 'images', hex, 'config.json');
  const image = JSON.parse(await readFile(path, 'utf8')) as { config?: ImageConfig };
  const config = image.config ?? {};
  const user = resolveUser(
    config.User ?? '',
    (await readInRoot(mount.directory, '/etc/passwd')) ?? '',
    (await readInRoot(mount.directory, '/etc/group')) ?? '',
  );
  const readonlyRoot = mount.rw === 'off';
  const spec = makeSpec({
    config,
    command,
    user,
    rootPath: mount.directory,
    readonlyRoot,
    hostname: id,
    terminal,
    net: context.settings.text('net') as 'host' | 'none',
    // One level only: the runtime removes what it made, and would leave a parent behind.
    cgroupsPath: `/firstlight-${id}`,
    openFilesMax: openFilesLimit(await readFile('/proc/self/limits', 'latin1')),
    binds: await hostFiles(bundle, id, mount.directory, readonlyRoot),
  });
  await writeFile(join(bundle, 'config.json'), JSON.stringify(spec), { mode: 0o600 });
}

/** Runs the container and gives its exit code. */
async function runContainer(
  context: Context,
  container: Container,
  leased: LeasedCall,
): Promise<number> {
  let over = false;
  let lost = false;
  void leased.closed.then(async () => {
    if (over) return;
    lost = true;
    await container.kill();
  });
  const code = await container.exited;
  over = true;
  if (lost) {
    throw new FirstlightError(
      'internal',
      'the daemon has ended, and with it the file system of the container',
      {
        hint: `see ${join(context.settings.text('root'), 'daemon.log')}, and run it again`,
      },
    );
  }
  const failure = code === 0 ? undefined : await container.failure();
  await container.remove();
  if (failure === undefined) return code;
  // The runtime has written its own line to stderr, which it shares with the container.
  if (context.json) context.printJson({ error: { kind: 'usage', message: failure } });
  return startFailureCode(failure);
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<number> {
  const [image = '', ...command] = args;
  const runtime = findRuntime(context.settings.optional('runtime'));
  const id = containerId(options);
  const request = await mountRequest(context, image, options);
  checkMountPermission();
  const base = runtimeDir(context.settings.text('root'));
  const bundle = join(base, 'bundles', id);
  const stateDir = join(base, 'containers');
  await makeBundle(bundle, id);
  let leased: LeasedCall | undefined;
  try {
    leased = await lease(context, {
      ...request,
      lease: { container: { command: runtimeCommand({ runtime, stateDir }), id }, bundle },
    });
    const terminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
    await writeSpec(context, leased.mount, bundle, id, command, terminal);
    context.signal.throwIfAborted();
    context.releaseSignals();
    const container = new Container({ runtime, stateDir, bundle, id, terminal });
    return await runContainer(context, container, leased);
  } finally {
    await rm(bundle, { recursive: true, force: true });
    if (leased !== undefined) {
      leased.end();
      // The daemon unmounts before it closes the connection; then nothing of the container is left.
      await leased.closed;
    }
  }
}
