// What `doctor` looks at, a function for each check. None of them mounts: see probe.ts.
import { execFile } from 'node:child_process';
import { constants, existsSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readFile, rm, statfs, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { FirstlightError, toFirstlightError } from '../../errors/errors.ts';
import { canOpenAlone } from '../../fuse/opens.ts';
import { findProgram } from '../container/runtime.ts';
import type { Context } from '../context.ts';
import { mayMount } from '../mount-request.ts';

/** One finding. `fail`: something that mounts and containers need is missing. */
export interface Finding {
  name: string;
  level: 'ok' | 'warn' | 'fail';
  /** What was found. */
  text: string;
  /** What to do about it; absent where nothing is to be done. */
  hint?: string;
}

const ok = (name: string, text: string): Finding => ({ name, level: 'ok', text });
const warn = (name: string, text: string, hint: string): Finding => ({
  name,
  level: 'warn',
  text,
  hint,
});
const fail = (name: string, text: string, hint: string): Finding => ({
  name,
  level: 'fail',
  text,
  hint,
});

/** Magic numbers of statfs(2) with the names that people know, and whether files can share blocks there. */
const FILE_SYSTEMS: Record<number, { name: string; reflink: boolean }> = {
  61267: { name: 'ext4', reflink: false },
  2435016766: { name: 'btrfs', reflink: true },
  1481003842: { name: 'xfs', reflink: true },
  16914836: { name: 'tmpfs', reflink: false },
  2035054128: { name: 'overlayfs', reflink: false },
  26985: { name: 'nfs', reflink: false },
  801189825: { name: 'zfs', reflink: true },
};

async function textOf(path: string): Promise<string | undefined> {
  return readFile(path, 'utf8').then(
    (text) => text.trim(),
    // Not there on this kernel, or not for us: both mean that nothing is known.
    () => undefined,
  );
}

/** Kernel: passthrough came with 6.9; everything else works from 5.10, Debian 11's. */
export function checkKernel(version: string = release()): Finding {
  const [major = 0, minor = 0] = version.split('.').map((part) => Number.parseInt(part, 10));
  const number = major * 1000 + minor;
  if (number >= 6009) return ok('kernel', version);
  if (number >= 5010) {
    return warn('kernel', version, '6.9 or newer reads ready files without a detour (passthrough)');
  }
  return fail('kernel', version, 'use Linux 5.10 or newer');
}

/** Whether files of a complete image can be opened without a detour. */
export function checkOpens(version: string = release()): Finding {
  if (canOpenAlone(version))
    return ok('opens', 'the kernel opens files of complete images by itself');
  const hint = 'Linux 6.18.3 or newer (of 6.12: 6.12.64) opens files of complete images by itself';
  return warn('opens', 'every open is a request to the daemon', hint);
}

/** The interpreter. */
export function checkNode(version: string = process.versions.node): Finding {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (major > 22 || (major === 22 && minor >= 18)) return ok('node', `v${version}`);
  return fail('node', `v${version}`, 'use Node.js 22.18 or newer');
}

/** The native addon, and /dev/fuse as it sees it. */
export async function checkAddon(): Promise<Finding[]> {
  try {
    const { loadAddon } = await import('../../native/index.ts');
    const probe = loadAddon().probe();
    const addon = ok('native part', 'loads');
    if (probe.devFuse) return [addon, ok('/dev/fuse', 'can be opened')];
    const hint = existsSync('/dev/fuse')
      ? 'run as root'
      : 'load the fuse module (modprobe fuse), or give this container the device /dev/fuse';
    return [addon, fail('/dev/fuse', probe.error ?? 'cannot be opened', hint)];
  } catch (error) {
    const e = toFirstlightError(error);
    const hint = e.hint ?? 'run "make native" in the checkout';
    const { loadLibrary } = await import('../../fuse/portable/library.ts');
    try {
      loadLibrary();
    } catch (cause) {
      const { line } = toFirstlightError(cause);
      return [fail('native part', e.message, hint), fail('fuse-native', line, hint)];
    }
    const what = `${e.message}; mounts go through fuse-native, read-only and slower`;
    return [warn('native part', what, hint)];
  }
}

/** The right to mount. */
export async function checkMountRight(): Promise<Finding> {
  const may = mayMount(await readFile('/proc/self/status', 'latin1'));
  if (may) return ok('mount permission', 'CAP_SYS_ADMIN');
  return fail('mount permission', 'CAP_SYS_ADMIN is missing', 'run as root, for example with sudo');
}

/** FUSE over io_uring: a later transport, off by default in the kernel. */
export async function checkUring(): Promise<Finding> {
  const path = '/sys/module/fuse/parameters/enable_uring';
  const value = await textOf(path);
  if (value === 'Y' || value === '1') return ok('fuse over io_uring', 'enabled in the kernel');
  if (value === undefined) {
    return ok('fuse over io_uring', 'this kernel has none (6.14 and newer do); not needed');
  }
  return ok('fuse over io_uring', `off in the kernel (${path}); not used by this version`);
}

/** Kernel overlayfs, which takes the writes by default. */
export async function checkOverlay(): Promise<Finding> {
  const known = () => textOf('/proc/filesystems').then((text) => /\boverlay\b/.test(text ?? ''));
  if (await known()) return ok('overlayfs', 'there');
  const module = await promisify(execFile)('modprobe', ['-n', 'overlay']).then(
    () => true,
    () => false,
  );
  if (module) return ok('overlayfs', 'as a module');
  return fail('overlayfs', 'the kernel has none', 'load it (modprobe overlay), or use --rw off');
}

/** runc or crun. */
export async function checkRuntime(wanted: string | undefined): Promise<Finding> {
  const names = wanted === undefined ? ['runc', 'crun'] : [wanted];
  for (const name of names) {
    const path = findProgram(name);
    if (path === undefined) continue;
    const version = await promisify(execFile)(path, ['--version']).then(
      ({ stdout }) => stdout.split('\n')[0] ?? '',
      (error: Error) => `does not run: ${error.message}`,
    );
    return ok('container runtime', `${path} (${version})`);
  }
  return warn(
    'container runtime',
    `none found (${names.join(', ')})`,
    'needed by "firstlight run": apt-get install runc',
  );
}

/** The store's root: can it be written, what file system is it on. */
export async function checkRoot(root: string): Promise<Finding> {
  const name = 'store root';
  let probe: string | undefined;
  try {
    await mkdir(root, { recursive: true, mode: 0o700 });
    probe = await mkdtemp(join(root, '.doctor-'));
    await writeFile(join(probe, 'a'), 'reflink?');
    const reflink = await copyFile(
      join(probe, 'a'),
      join(probe, 'b'),
      constants.COPYFILE_FICLONE_FORCE,
    ).then(
      () => true,
      () => false,
    );
    const fs = await statfs(root);
    const kind = FILE_SYSTEMS[fs.type]?.name ?? `file system 0x${fs.type.toString(16)}`;
    const freeBytes = fs.bavail * fs.bsize;
    const text = `${root}: ${kind}, ${(freeBytes / 1e9).toFixed(1)} GB free, ${reflink ? 'shares blocks (reflink)' : 'no reflink'}`;
    if (freeBytes < 1e9) return warn(name, text, 'less than 1 GB is left: free some space');
    if (kind === 'nfs' || kind === 'overlayfs') {
      return warn(name, text, `overlayfs cannot write to ${kind}: put --root on a local disk`);
    }
    return ok(name, text);
  } catch (error) {
    const e = toFirstlightError(error);
    return fail(
      name,
      `${root} cannot be written: ${e.message}`,
      'give another --root, or run as root',
    );
  } finally {
    if (probe !== undefined) await rm(probe, { recursive: true, force: true });
  }
}

/** The delta server: that it is there, and that it gives images to this worker. */
export async function checkServer(context: Context): Promise<Finding> {
  const name = 'server';
  const server = context.settings.text('server');
  const named = context.settings.isSet('server');
  const { API } = await import('../../delta/protocol.ts');
  const { ask } = await import('../token.ts');
  const start = performance.now();
  try {
    await (await ask(context, API.health)).dump();
    const ms = Math.round(performance.now() - start);
    // Nothing has this layer: whoever may fetch images is told so in a few bytes.
    await (await ask(context, `${API.chains}/sha256:${'0'.repeat(64)}`)).dump();
    return ok(name, `${server} answers in ${ms} ms`);
  } catch (error) {
    if (!(error instanceof FirstlightError)) throw error;
    const hint = error.hint ?? 'check --server';
    // Nobody said that there is one: the default address need not answer.
    return named ? fail(name, error.message, hint) : warn(name, error.message, hint);
  }
}

/** On a server's own machine: slow start after each pause costs round trips. */
export async function checkSlowStart(): Promise<Finding | undefined> {
  const value = await textOf('/proc/sys/net/ipv4/tcp_slow_start_after_idle');
  if (value !== '1') return undefined;
  return warn(
    'tcp slow start',
    'connections become slow again after a pause (matters on servers)',
    'on the server: sysctl -w net.ipv4.tcp_slow_start_after_idle=0',
  );
}
