// Platforms as os/architecture[/variant]: parsing, the usual aliases, and which one of an index
// serves a wanted one.
import { FirstlightError } from '../errors/errors.ts';

/** A platform in normal form: OCI's (Go's) names, variant only where it says something. */
export interface Platform {
  os: string;
  architecture: string;
  variant?: string;
}

const ARCHITECTURES: Record<string, [string, string?]> = {
  x86_64: ['amd64'],
  'x86-64': ['amd64'],
  x64: ['amd64'],
  aarch64: ['arm64'],
  armhf: ['arm', 'v7'],
  armel: ['arm', 'v6'],
  armv7l: ['arm', 'v7'],
  i386: ['386'],
  i686: ['386'],
  ia32: ['386'],
  ppc64el: ['ppc64le'],
};

function normalize(os: string, architecture: string, variant: string | undefined): Platform {
  const [name, implied] = ARCHITECTURES[architecture] ?? [architecture];
  let kind = variant === undefined || variant === '' ? implied : variant.toLowerCase();
  if (kind !== undefined && /^\d$/.test(kind)) kind = `v${kind}`;
  // The lowest member of a family is what a bare name means (arm alone: v7, as its index entries).
  if (name === 'arm64' && kind === 'v8') kind = undefined;
  if (name === 'amd64' && kind === 'v1') kind = undefined;
  if (name === 'arm' && kind === undefined) kind = 'v7';
  const system = os === 'macos' ? 'darwin' : os;
  return { os: system, architecture: name, ...(kind === undefined ? {} : { variant: kind }) };
}

/**
 * Parses `os/architecture[/variant]`; an architecture alone means Linux.
 * @throws FirstlightError `usage`
 */
export function parsePlatform(text: string): Platform {
  const parts = text.toLowerCase().split('/');
  if (parts.length === 1) parts.unshift('linux');
  if (parts.length > 3 || parts.some((part) => !/^[a-z0-9_.-]+$/.test(part))) {
    throw new FirstlightError('usage', `'${text}' is not a platform`, {
      hint: 'write os/architecture[/variant], such as linux/amd64 or linux/arm/v7',
    });
  }
  return normalize(parts[0]!, parts[1]!, parts[2]);
}

/** The platform of JSON fields (an index entry, an image config), or undefined where none is given. */
export function platformOf(json: {
  os?: string | undefined;
  architecture?: string | undefined;
  variant?: string | undefined;
}): Platform | undefined {
  if (json.os === undefined || json.os === '') return undefined;
  if (json.architecture === undefined || json.architecture === '') return undefined;
  return normalize(json.os.toLowerCase(), json.architecture.toLowerCase(), json.variant);
}

/** A platform as text, in normal form. */
export function formatPlatform(platform: Platform): string {
  const { os, architecture, variant } = platform;
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}

/** The platform of this machine. */
export function hostPlatform(): Platform {
  return normalize(process.platform, process.arch, undefined);
}

/** The number of a variant such as `v7`; a missing one is the family's base. */
function level(platform: Platform): number | undefined {
  const { architecture, variant } = platform;
  if (variant === undefined) return architecture === 'arm64' ? 8 : 1;
  const match = /^v(\d+)(?:\.\d+)?$/.exec(variant);
  return match === null ? undefined : Number(match[1]);
}

/**
 * How well `offered` serves `wanted`: 0 is exact, larger is an older variant that still runs there,
 * and undefined is not at all.
 */
export function platformDistance(wanted: Platform, offered: Platform): number | undefined {
  if (wanted.os !== offered.os || wanted.architecture !== offered.architecture) return undefined;
  if (wanted.variant === offered.variant) return 0;
  const [high, low] = [level(wanted), level(offered)];
  if (high === undefined || low === undefined || low > high) return undefined;
  return 1 + high - low;
}

/** The error for an image that has other platforms than the wanted one. */
export function noSuchPlatform(
  what: string,
  wanted: Platform,
  offered: (Platform | undefined)[],
): FirstlightError {
  const names = offered
    .filter((platform) => platform !== undefined && platform.os !== 'unknown')
    .map((platform) => formatPlatform(platform!));
  const has = names.length === 0 ? 'names none' : `has ${[...new Set(names)].join(', ')}`;
  return new FirstlightError(
    'platform',
    `${what} is not for ${formatPlatform(wanted)}: it ${has}`,
    {
      hint: 'choose one of these with --platform',
    },
  );
}
