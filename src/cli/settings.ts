// Every setting of the program: one table, from which flags, environment variables and the keys of
// the configuration file follow. A key `wait-timeout` is `--wait-timeout`, FIRSTLIGHT_WAIT_TIMEOUT
// and `wait-timeout = "300s"`. What the command line asks of one command only (such as --wait)
// stands in commands.ts.
import { existsSync, readFileSync } from 'node:fs';
import { isAbsolute, join, resolve } from 'node:path';
import { defaultRoot } from '../daemon/paths.ts';
import { FirstlightError } from '../errors/errors.ts';
import { formatPlatform, hostPlatform } from '../image/platform.ts';

/** How the text of a setting is read. */
type SettingType = 'text' | 'path' | 'url' | 'duration' | 'count' | 'boolean' | readonly string[];

interface SettingSpec {
  type: SettingType;
  /** What stands for the value in `--help`. */
  placeholder: string;
  text: string;
  /** As text, in the form a user would write; undefined where there is none. */
  default?: string | (() => string);
  /** An empty variable is an error: taken for none, it would leave open what it was to close. */
  neverEmpty?: true;
}

export const SETTINGS = {
  server: {
    type: 'url',
    placeholder: 'URL',
    text: 'delta server',
    default: 'http://127.0.0.1:7070',
  },
  root: {
    type: 'path',
    placeholder: 'DIR',
    text: 'where this worker keeps its images',
    default: () => defaultRoot(),
  },
  platform: {
    type: 'text',
    placeholder: 'OS/ARCH[/VARIANT]',
    text: 'platform of the image',
    default: () => formatPlatform(hostPlatform()),
  },
  rw: {
    type: ['overlay', 'fuse', 'off'],
    placeholder: 'MODE',
    text: 'what takes the writes: overlay (the kernel), fuse (a tree of our own), or off',
    default: 'overlay',
  },
  session: {
    type: ['kernel', 'fuse-native'],
    placeholder: 'KIND',
    text: 'what speaks to the kernel: kernel, or fuse-native (read-only, slower)',
    default: 'kernel',
  },
  'wait-timeout': {
    type: 'duration',
    placeholder: 'TIME',
    text: 'a read that waits longer for its bytes fails (EIO); 0 = never',
    default: '300s',
  },
  threads: {
    type: 'count',
    placeholder: 'N',
    text: 'threads for each mount; 0 = one for each CPU, at most 4',
    default: '0',
  },
  connections: {
    type: 'count',
    placeholder: 'N',
    text: 'connections that an image comes over at once',
    default: '8',
  },
  passthrough: {
    type: 'boolean',
    placeholder: 'BOOL',
    text: 'let the kernel read ready files by itself',
    default: 'true',
  },
  opens: {
    type: ['auto', 'seen'],
    placeholder: 'MODE',
    text: 'auto: files of a complete image are opened without asking; seen: each open is a request',
    default: 'auto',
  },
  idle: {
    type: 'duration',
    placeholder: 'TIME',
    text: 'the daemon ends after this time with nothing to do',
    default: '60s',
  },
  snapshotter: {
    type: 'path',
    placeholder: 'SOCKET',
    text: "be containerd's snapshotter on this socket",
  },
  'prepare-timeout': {
    type: 'duration',
    placeholder: 'TIME',
    text: 'a pull is an ordinary one where the delta server has not answered by then',
    default: '2s',
  },
  'keep-warm': {
    type: 'duration',
    placeholder: 'TIME',
    text: 'keep the connections to the delta server open so long after a pull; 0 = not at all',
    default: '10m',
  },
  metrics: {
    type: 'text',
    placeholder: 'HOST:PORT',
    text: "where the daemon's metrics are read (Prometheus)",
  },
  runtime: {
    type: 'text',
    placeholder: 'PROGRAM',
    text: 'OCI runtime: runc, crun or a path; the first one found where not given',
  },
  net: {
    type: ['host', 'none'],
    placeholder: 'MODE',
    text: "network of the container: host (the machine's own) or none",
    default: 'host',
  },
  data: { type: 'path', placeholder: 'DIR', text: 'where a server keeps its images' },
  listen: {
    type: 'text',
    placeholder: 'HOST:PORT',
    text: 'where the server listens',
    default: '127.0.0.1:7070',
  },
  rate: {
    type: 'text',
    placeholder: 'RATE',
    text: 'bound on what the server sends, such as 100mbit or 12.5MB/s',
    default: 'off',
  },
  'registry-login': {
    type: 'boolean',
    placeholder: 'BOOL',
    text: "let every client pull with the server's own docker login",
    default: 'false',
  },
  'hosts-dir': {
    type: 'text',
    placeholder: 'DIR[:DIR...]',
    text: "containerd's and docker's directories of registry mirrors and certificates",
    default: '/etc/containerd/certs.d:/etc/docker/certs.d',
  },
  'token-file': {
    type: 'path',
    placeholder: 'FILE',
    text: 'file with the token that is shown to the server; serve without --tokens: that changes want',
  },
  tokens: {
    type: 'path',
    placeholder: 'FILE',
    text: 'file of the tokens that a server takes; every request wants one then',
    neverEmpty: true,
  },
  log: {
    type: ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'],
    placeholder: 'LEVEL',
    text: 'least severe log line that is written',
    default: 'info',
  },
} as const satisfies Record<string, SettingSpec>;

export type SettingKey = keyof typeof SETTINGS;

/** A setting's value with the place it came from, for error messages. */
interface Found {
  text: string;
  from: string;
}

/** Environment variable of a key. */
export function variableOf(key: string): string {
  return `FIRSTLIGHT_${key.toUpperCase().replaceAll('-', '_')}`;
}

/** Milliseconds of a time such as `300s`, `5m`, `1.5h`, `250ms`; a bare number is seconds. Undefined where it is none. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text.trim());
  if (match === null) return undefined;
  const unit = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[match[2] ?? 's'] ?? 1000;
  const ms = Math.round(Number(match[1]) * unit);
  return ms <= 2 ** 31 - 1 ? ms : undefined;
}

/** All settings by precedence: flag, environment variable, configuration file, default. */
export class Settings {
  readonly #flags: Record<string, unknown>;
  readonly #env: NodeJS.ProcessEnv;
  readonly #file: Map<string, Found>;

  private constructor(
    flags: Record<string, unknown>,
    env: NodeJS.ProcessEnv,
    file: Map<string, Found>,
  ) {
    this.#flags = flags;
    this.#env = env;
    this.#file = file;
  }

  /**
   * Reads the configuration file, where there is one.
   * @throws FirstlightError `usage` for an unknown key or a file that cannot be read
   */
  static async load(
    flags: Record<string, unknown>,
    env: NodeJS.ProcessEnv = process.env,
  ): Promise<Settings> {
    const asked = (flags.config as string | undefined) ?? nonEmpty(env.FIRSTLIGHT_CONFIG);
    const path = asked ?? configPaths(env).find((candidate) => existsSync(candidate));
    const file = path === undefined ? new Map<string, Found>() : await readConfig(path);
    // A copy: what a command puts into its own environment later is not the user's word.
    return new Settings(flags, { ...env }, file);
  }

  #find(key: SettingKey): Found | undefined {
    const flag = this.#flags[key];
    if (flag !== undefined) return { text: String(flag), from: `--${key}` };
    const spec: SettingSpec = SETTINGS[key];
    const given = this.#env[variableOf(key)];
    const variable = spec.neverEmpty === true ? given : nonEmpty(given);
    if (variable !== undefined) return { text: variable, from: variableOf(key) };
    const inFile = this.#file.get(key);
    if (inFile !== undefined) return inFile;
    if (spec.default === undefined) return undefined;
    return {
      text: typeof spec.default === 'string' ? spec.default : spec.default(),
      from: 'default',
    };
  }

  /** True where flag, environment or file name the setting. */
  isSet(key: SettingKey): boolean {
    const found = this.#find(key);
    return found !== undefined && found.from !== 'default';
  }

  /** Checked text of a setting; undefined only where it has no default. */
  optional(key: SettingKey): string | undefined {
    const found = this.#find(key);
    if (found === undefined) return undefined;
    const spec: SettingSpec = SETTINGS[key];
    return check(key, spec.type, found);
  }

  /** Checked text of a setting. @throws FirstlightError `usage` where it is not given and has no default */
  text(key: SettingKey): string {
    const value = this.optional(key);
    if (value === undefined) {
      throw new FirstlightError('usage', `--${key} is not given`, {
        hint: `give --${key} ${SETTINGS[key].placeholder} or set ${variableOf(key)}`,
      });
    }
    return value;
  }

  ms(key: 'wait-timeout' | 'idle' | 'prepare-timeout' | 'keep-warm'): number {
    return parseDuration(this.text(key)) ?? 0;
  }

  count(key: 'threads' | 'connections'): number {
    return Number(this.text(key));
  }

  flag(key: 'passthrough' | 'registry-login'): boolean {
    return this.text(key) === 'true';
  }
}

function nonEmpty(text: string | undefined): string | undefined {
  return text === '' ? undefined : text;
}

/** Where a configuration file is looked for, in this order, when none is named. */
function configPaths(env: NodeJS.ProcessEnv): string[] {
  const xdg =
    env.XDG_CONFIG_HOME ?? (env.HOME === undefined ? undefined : join(env.HOME, '.config'));
  const paths = xdg === undefined ? [] : [join(xdg, 'firstlight/config.toml')];
  return [...paths, '/etc/firstlight/config.toml'];
}

async function readConfig(path: string): Promise<Map<string, Found>> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new FirstlightError('usage', `${path} cannot be read: ${(cause as Error).message}`, {
      hint: 'give another --config FILE',
      cause,
    });
  }
  const { parse } = await import('smol-toml');
  let table: Record<string, unknown>;
  try {
    table = parse(text);
  } catch (cause) {
    const [reason = 'not TOML'] = (cause as Error).message.split('\n');
    throw new FirstlightError('usage', `${path}: ${reason}`, { hint: 'mend the file', cause });
  }
  const found = new Map<string, Found>();
  for (const [key, value] of Object.entries(table)) {
    if (!Object.hasOwn(SETTINGS, key)) {
      throw new FirstlightError('usage', `${path}: unknown key "${key}"`, {
        hint: `the keys are ${Object.keys(SETTINGS).join(', ')}`,
      });
    }
    if (!['string', 'number', 'boolean'].includes(typeof value)) {
      throw new FirstlightError('usage', `${path}: "${key}" is not a plain value`, {
        hint: 'write a string, a number or a boolean',
      });
    }
    found.set(key, { text: String(value), from: `${path}: "${key}"` });
  }
  return found;
}

/** What a value must look like, in words; undefined where `text` is right. */
function complaint(type: SettingType, text: string): string | undefined {
  if (typeof type === 'object') return type.includes(text) ? undefined : type.join(', ');
  switch (type) {
    case 'url':
      return /^https?:\/\/[^/\s]+/.test(text) && URL.canParse(text)
        ? undefined
        : 'an http or https URL';
    case 'duration':
      return parseDuration(text) === undefined ? 'a time such as 300s, 5m or 250ms' : undefined;
    case 'count':
      return /^\d{1,2}$/.test(text) && Number(text) <= 64 ? undefined : 'a whole number up to 64';
    case 'boolean':
      return text === 'true' || text === 'false' ? undefined : 'true or false';
    case 'path':
    case 'text':
      return text === '' ? 'not empty' : undefined;
  }
}

function check(key: string, type: SettingType, found: Found): string {
  const wanted = complaint(type, found.text);
  if (wanted !== undefined) {
    throw new FirstlightError('usage', `${found.from} is "${found.text}"`, {
      hint: `${key} must be ${wanted}`,
    });
  }
  if (type === 'path' && !isAbsolute(found.text)) return resolve(found.text);
  return found.text;
}
