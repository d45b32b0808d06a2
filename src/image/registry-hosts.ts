// The hosts that stand for a registry: mirrors and the registry itself, with the certificates that each is trusted
// by, from containerd's and docker's directories (certs.d/HOST/hosts.toml, or *.crt, *.cert and *.key alone).
// Reading hosts.toml itself is hosts-file.ts; asking the hosts is registry.ts.
import { X509Certificate } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { createSecureContext, getCACertificates, type SecureContext } from 'node:tls';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { type ClientPair, type HostEntry, parseHostsFile } from './hosts-file.ts';
import { isLoopback } from './registry-http.ts';

/** One host to ask, in the order of the list that it stands in. */
export interface RegistryHost {
  /** The API's root without a slash at its end. */
  url: URL;
  /** Not the registry itself: it is told which registry is meant, and gets logins of its own only. */
  mirror: boolean;
  resolve: boolean;
  pull: boolean;
  /** What is trusted, and the client's certificate; undefined for plain HTTP. */
  tls: { context: SecureContext; verify: boolean } | undefined;
  headers: [name: string, value: string][];
  dialTimeoutMs: number | undefined;
}

/** Where systems keep the certificate authorities that all programs trust, as one file; the first one counts. */
const SYSTEM_BUNDLES = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem',
  '/etc/ssl/cert.pem',
];
const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

/** Directories in a setting: separated by colons, as containerd's `config_path` has them. */
export function splitHostsDirs(text: string): string[] {
  return text.split(delimiter).filter((each) => each !== '');
}

/** Names that a registry's directory may have; the first one that is there counts, as it does for containerd. */
function namesOf(registry: string): string[] {
  const port = /^(.+):(\d+)$/.exec(registry);
  return [...(port === null ? [] : [`${port[1]}_${port[2]}_`]), registry, '_default'];
}

async function findDirectory(
  dirs: readonly string[],
  registry: string,
): Promise<string | undefined> {
  for (const dir of dirs) {
    for (const name of namesOf(registry)) {
      const path = join(dir, name);
      try {
        await stat(path);
        return path;
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code !== 'ENOENT' && code !== 'ENOTDIR') throw toFirstlightError(error);
      }
    }
  }
  return undefined;
}

/** The registry itself, with the certificates that lie in docker's way in a directory. */
async function readCertificates(directory: string): Promise<HostEntry> {
  const names = (await readdir(directory)).sort();
  const files = (ending: string) =>
    names.filter((name) => name.endsWith(ending)).map((name) => join(directory, name));
  const keys = new Set(files('.key'));
  const client = files('.cert').map((certificate): ClientPair => {
    const key = certificate.replace(/cert$/, 'key');
    return { certificate, key: keys.has(key) ? key : certificate };
  });
  return { ...PLAIN, ca: files('.crt'), client };
}

const PLAIN: HostEntry = {
  url: undefined,
  resolve: true,
  pull: true,
  ca: [],
  client: [],
  skipVerify: undefined,
  headers: [],
  dialTimeoutMs: undefined,
};

async function readEntries(dirs: readonly string[], registry: string): Promise<HostEntry[]> {
  const directory = await findDirectory(dirs, registry);
  if (directory === undefined) return [PLAIN];
  const path = join(directory, 'hosts.toml');
  try {
    const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return '';
      throw error;
    });
    return text === '' ? [await readCertificates(directory)] : parseHostsFile(text, path);
  } catch (error) {
    throw toFirstlightError(error);
  }
}

/** What the system trusts, what Node.js was told to trust in addition, and where neither is, what Node.js brings. */
export async function commonAuthorities(): Promise<string[]> {
  const named = process.env.SSL_CERT_FILE ?? '';
  for (const path of named === '' ? SYSTEM_BUNDLES : [named]) {
    try {
      return [await readFile(path, 'utf8'), ...getCACertificates('extra')];
    } catch {
      // Another system's place.
    }
  }
  return getCACertificates('default');
}

async function readPem(path: string, what: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    const { kind, message } = toFirstlightError(error);
    throw new FirstlightError(kind, `${what}: ${message}`, {
      hint: 'check the path',
      cause: error,
    });
  }
}

async function readAuthorities(path: string): Promise<string> {
  const text = await readPem(path, 'a certificate authority');
  const found = text.match(CERTIFICATE) ?? [];
  try {
    if (found.length === 0) throw new Error('none found');
    for (const each of found) new X509Certificate(each);
  } catch (cause) {
    throw new FirstlightError('usage', `${path} holds no certificates that can be read`, {
      hint: 'it must hold PEM blocks BEGIN CERTIFICATE',
      cause,
    });
  }
  return text;
}

async function readClient({
  certificate,
  key,
}: ClientPair): Promise<{ cert: string; key: string }> {
  const cert = await readPem(certificate, 'a client certificate');
  const secret = key === certificate ? cert : await readPem(key, "a client certificate's key");
  try {
    createSecureContext({ cert, key: secret });
  } catch (cause) {
    throw new FirstlightError('usage', `${certificate} and ${key} are no certificate and its key`, {
      hint: 'both must be PEM, the key without a password',
      cause,
    });
  }
  return { cert, key: secret };
}

async function tlsOf(entry: HostEntry, common: string[], credentials: boolean) {
  const ca = [...common, ...(await Promise.all(entry.ca.map(readAuthorities)))];
  // Read in any case: a file that is wrong is told, whoever asks.
  const client = await Promise.all(entry.client.map(readClient));
  const own =
    credentials && client.length > 0
      ? { cert: client.map(({ cert }) => cert), key: client.map(({ key }) => key) }
      : {};
  return { context: createSecureContext({ ca, ...own }), verify: entry.skipVerify !== true };
}

/** The registry itself, where a file names no other place for it. */
function ownUrls(registry: string, entry: HostEntry, plainHttp: boolean): URL[] {
  const host = registry === 'docker.io' ? 'registry-1.docker.io' : registry;
  const url = (scheme: string) => new URL(`${scheme}://${host}/v2`);
  if (!isLoopback(host)) return [url(plainHttp ? 'http' : 'https')];
  const isTold = entry.ca.length > 0 || entry.client.length > 0 || entry.skipVerify !== undefined;
  // What speaks on this machine may be either, as for containerd: what the file says may be meant for all hosts.
  return isTold ? [url('https'), url('http')] : [url('http')];
}

export interface HostsOptions {
  /** Directories such as /etc/containerd/certs.d, in the order in which they are looked into. */
  dirs: readonly string[];
  /** Speak plain HTTP to a registry that no file is about. */
  plainHttp: boolean;
  /** Client certificates and headers of the files may be used: they are as good as a login. */
  credentials: boolean;
}

/**
 * The hosts to ask for a registry, mirrors first.
 * @param registry  as users name it, with port
 * @throws FirstlightError `usage`, `not-found`, `permission` or `unsupported`, naming the file that is wrong
 */
export async function registryHosts(
  registry: string,
  options: HostsOptions,
): Promise<RegistryHost[]> {
  const { dirs, plainHttp, credentials } = options;
  const entries = await readEntries(dirs, registry);
  // Read once, and only where it is needed.
  let common: Promise<string[]> | undefined;
  const tls = async (entry: HostEntry) => {
    common ??= commonAuthorities();
    return tlsOf(entry, await common, credentials);
  };
  const found: RegistryHost[] = [];
  const own = new Set([registry, registry === 'docker.io' ? 'registry-1.docker.io' : registry]);
  for (const entry of entries) {
    const { resolve, pull, dialTimeoutMs } = entry;
    const urls = entry.url === undefined ? ownUrls(registry, entry, plainHttp) : [entry.url];
    for (const url of urls) {
      found.push({
        ...{ url, resolve, pull, dialTimeoutMs },
        mirror: !own.has(url.host),
        tls: url.protocol === 'https:' ? await tls(entry) : undefined,
        headers: credentials ? entry.headers : [],
      });
    }
  }
  return found;
}
