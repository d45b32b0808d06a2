// What `mount` and `run` share: checks that need no daemon, and the request made of the settings.
import { closeSync, openSync, readFileSync, readlinkSync } from 'node:fs';
import type { MountRequest, RwMode, SessionKind } from '../daemon/control.ts';
import { FirstlightError } from '../errors/errors.ts';
import type { OpensChoice } from '../fuse/opens.ts';
import { formatPlatform, parsePlatform } from '../image/platform.ts';
import type { OptionValues } from './commands.ts';
import type { Context } from './context.ts';

/** Bit of CAP_SYS_ADMIN in the masks of /proc/PID/status (capabilities(7)). */
const CAP_SYS_ADMIN = 1n << 21n;

/** True where this process may mount. */
export function mayMount(status: string = readFileSync('/proc/self/status', 'latin1')): boolean {
  const mask = /^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1];
  return mask !== undefined && (BigInt(`0x${mask}`) & CAP_SYS_ADMIN) !== 0n;
}

/**
 * Fails early, and with the cause, where this process could not mount.
 * @throws FirstlightError `permission` or `unsupported`
 */
export function checkMountPermission(): void {
  try {
    closeSync(openSync('/dev/fuse', 'r+'));
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'EACCES' || code === 'EPERM') {
      throw new FirstlightError('permission', '/dev/fuse cannot be opened: permission denied', {
        hint: 'run as root, for example with sudo',
        cause,
      });
    }
    throw new FirstlightError('unsupported', `/dev/fuse cannot be opened: ${code}`, {
      hint: 'load the fuse module (modprobe fuse), or give this container the device /dev/fuse',
      cause,
    });
  }
  if (!mayMount()) {
    throw new FirstlightError('permission', 'mounting needs the capability CAP_SYS_ADMIN', {
      hint: 'run as root, for example with sudo',
    });
  }
}

/** The plainest references, NAME[:TAG] in lower case: right by any grammar. */
const PLAIN = /^[a-z0-9]+(?:[._/-][a-z0-9]+)*(?::[a-z0-9][a-z0-9._-]{0,63})?$/;

/**
 * @throws FirstlightError `usage` where `text` is neither NAME[:TAG][@DIGEST] nor a digest
 */
export async function checkImage(text: string): Promise<void> {
  if ((PLAIN.test(text) && text.length < 128) || /^sha256:[0-9a-f]{64}$/.test(text)) return;
  // The full grammar comes with modules that cost 5 ms of a client's 60.
  const { parseReference } = await import('../image/reference.ts');
  parseReference(text);
}

/** The platform where the user has named one, checked: commands to the server leave it open otherwise. */
export function namedPlatform(context: Context): string | undefined {
  if (!context.settings.isSet('platform')) return undefined;
  return formatPlatform(parsePlatform(context.settings.text('platform')));
}

/** @throws FirstlightError `usage` */
function checkName(name: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(name)) return;
  throw new FirstlightError('usage', `--name "${name}" cannot be the name of a mount`, {
    hint: 'use letters, digits, "-", "_" and "."',
  });
}

/** @throws FirstlightError `usage`, `unsupported` */
export async function mountRequest(
  context: Context,
  image: string,
  options: OptionValues,
): Promise<MountRequest> {
  const { settings } = context;
  await checkImage(image);
  const updateFrom = options['update-from'] as string[] | undefined;
  for (const base of updateFrom ?? []) await checkImage(base);
  const platform = formatPlatform(parsePlatform(settings.text('platform')));
  const rw = settings.text('rw') as RwMode;
  const session = settings.text('session') as SessionKind;
  if (rw === 'fuse' && session === 'fuse-native') {
    throw new FirstlightError('unsupported', '--rw fuse needs the kernel session', {
      hint: 'mount without --session fuse-native, or with --rw overlay',
    });
  }
  const tokenFile = settings.optional('token-file');
  const trace = options.trace as string | undefined;
  const name = options.name as string | undefined;
  if (name !== undefined) checkName(name);
  return {
    op: 'mount',
    image,
    server: settings.text('server'),
    ...(tokenFile === undefined ? {} : { tokenFile }),
    platform,
    rw,
    session,
    ...(name === undefined ? {} : { name }),
    ...(options.keep === true ? { keep: true } : {}),
    ...(trace === undefined ? {} : { trace }),
    ...(updateFrom === undefined ? {} : { updateFrom }),
    waitTimeoutMs: settings.ms('wait-timeout'),
    threads: settings.count('threads'),
    passthrough: settings.flag('passthrough'),
    opens: settings.text('opens') as OpensChoice,
    wait: options.wait === true,
    // When the command was started, not when this line runs: the interpreter's start counts too.
    requestedAt: Math.round(performance.timeOrigin),
    mountNamespace: readlinkSync('/proc/self/ns/mnt'),
  };
}
