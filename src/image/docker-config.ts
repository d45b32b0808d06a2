// Logins from docker's config.json: those in the file, and which credential helper has the others.
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import * as v from 'valibot';
import { FirstlightError, toFirstlightError } from '../errors/errors.ts';
import { readHelperAuth } from './credential-helper.ts';

/** A login for a registry: name and password, or a token instead of them. */
export interface RegistryAuth {
  username?: string;
  password?: string;
  /** OAuth2 refresh token (docker's `identitytoken`). */
  identityToken?: string;
  /** Bearer token to send as it is (docker's `registrytoken`). */
  registryToken?: string;
}

const Entry = v.object({
  auth: v.optional(v.string()),
  username: v.optional(v.string()),
  password: v.optional(v.string()),
  identitytoken: v.optional(v.string()),
  registrytoken: v.optional(v.string()),
});
const Config = v.object({
  auths: v.optional(v.nullable(v.record(v.string(), Entry))),
  credsStore: v.optional(v.string()),
  credHelpers: v.optional(v.nullable(v.record(v.string(), v.string()))),
});

/** Path of docker's config.json: in DOCKER_CONFIG, or in ~/.docker. */
export function dockerConfigPath(): string {
  const directory = process.env.DOCKER_CONFIG;
  return join(
    directory === undefined || directory === '' ? join(homedir(), '.docker') : directory,
    'config.json',
  );
}

/** Host of a key of `auths`, which may be a URL (`https://index.docker.io/v1/`). */
function hostOf(key: string): string {
  const host = key.replace(/^https?:\/\//, '').replace(/\/.*$/, '');
  return host === 'index.docker.io' || host === 'registry-1.docker.io' ? 'docker.io' : host;
}

function fromEntry(entry: v.InferOutput<typeof Entry>, path: string): RegistryAuth | undefined {
  const auth: RegistryAuth = {};
  if (entry.auth !== undefined && entry.auth !== '') {
    const text = Buffer.from(entry.auth, 'base64').toString('utf8').replace(/\0+$/, '');
    const colon = text.indexOf(':');
    if (colon < 0) {
      throw new FirstlightError('usage', `${path}: a login is not the base64 of NAME:PASSWORD`, {
        hint: 'log in again with docker login',
      });
    }
    auth.username = text.slice(0, colon);
    auth.password = text.slice(colon + 1);
  } else if (entry.username !== undefined && entry.password !== undefined) {
    auth.username = entry.username;
    auth.password = entry.password;
  }
  if (entry.identitytoken) auth.identityToken = entry.identitytoken;
  if (entry.registrytoken) auth.registryToken = entry.registrytoken;
  return Object.keys(auth).length === 0 ? undefined : auth;
}

async function readConfig(path: string): Promise<v.InferOutput<typeof Config> | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    // No config is the common case: no logins.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw toFirstlightError(error);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new FirstlightError('usage', `${path} is not JSON: ${(error as Error).message}`);
  }
  const parsed = v.safeParse(Config, json);
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0];
  const field = v.getDotPath(issue) ?? 'the document';
  throw new FirstlightError('usage', `${path}: ${field}: ${issue.message}`);
}

/** What docker calls its own registry where it speaks to helpers. */
const HUB = 'https://index.docker.io/v1/';

/**
 * The login that docker has for a registry (`docker.io`, `localhost:5000`), or undefined: that of the registry's own
 * helper, else the one in config.json, else that of the helper for all registries.
 * @throws FirstlightError `usage` for a config that cannot be read, or a helper that fails
 */
export async function readDockerAuth(registryHost: string): Promise<RegistryAuth | undefined> {
  const path = dockerConfigPath();
  const config = await readConfig(path);
  const wanted = hostOf(registryHost);
  const named = wanted === 'docker.io' ? HUB : wanted;
  const own = Object.entries(config?.credHelpers ?? {}).find(([key]) => hostOf(key) === wanted);
  if (own !== undefined) {
    const auth = await readHelperAuth(own[1], named);
    if (auth !== undefined) return auth;
  }
  for (const [key, entry] of Object.entries(config?.auths ?? {})) {
    if (hostOf(key) !== wanted) continue;
    const auth = fromEntry(entry, path);
    if (auth !== undefined) return auth;
  }
  const store = config?.credsStore;
  if (own !== undefined || store === undefined || store === '') return undefined;
  return readHelperAuth(store, named);
}

/** The credential helper that docker would ask for a registry, or undefined. */
export async function dockerHelper(registryHost: string): Promise<string | undefined> {
  const config = await readConfig(dockerConfigPath());
  const wanted = hostOf(registryHost);
  for (const [key, helper] of Object.entries(config?.credHelpers ?? {})) {
    if (hostOf(key) === wanted) return helper;
  }
  return config?.credsStore;
}
