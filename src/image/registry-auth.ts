// Logging in to a registry: Basic, and bearer tokens from the token server that the registry names
// (the distribution project's token and OAuth2 protocols).
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';
import { parseChallenges } from './challenge.ts';
import { dockerHelper, type RegistryAuth } from './docker-config.ts';
import { type HttpClient, isLoopback, readBody, Transient } from './registry-http.ts';

const TOKEN_BYTES_MAX = 1 << 20;
const Token = v.object({
  token: v.optional(v.string()),
  access_token: v.optional(v.string()),
});

/** Keeps the Authorization header of one repository. */
export class Authorizer {
  readonly #http: HttpClient;
  readonly #registry: string;
  readonly #repository: string;
  readonly #auth: RegistryAuth | undefined;
  /** Value of the Authorization header, once one is known. */
  header: string | undefined;

  constructor(
    http: HttpClient,
    registry: string,
    repository: string,
    auth: RegistryAuth | undefined,
  ) {
    this.#http = http;
    this.#registry = registry;
    this.#repository = repository;
    this.#auth = auth;
    if (auth?.registryToken !== undefined) this.header = `Bearer ${auth.registryToken}`;
  }

  /**
   * Answers a 401: sets {@link header} for the next attempt.
   * @throws FirstlightError `unauthorized` where there is nothing to answer with
   */
  async answer(header: string | string[] | undefined): Promise<void> {
    const challenges = parseChallenges(header);
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer');
    if (bearer !== undefined) {
      this.header = `Bearer ${await this.#token(bearer.parameters)}`;
      return;
    }
    const basic = this.#basic();
    if (challenges.some(({ scheme }) => scheme === 'basic') && basic !== undefined) {
      this.header = basic;
      return;
    }
    throw await this.refused();
  }

  #basic(): string | undefined {
    const { username, password } = this.#auth ?? {};
    if (username === undefined || password === undefined) return undefined;
    return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
  }

  async #token(parameters: Map<string, string>): Promise<string> {
    const realm = parameters.get('realm') ?? '';
    let url: URL;
    try {
      url = new URL(realm);
    } catch {
      throw new FirstlightError('unreachable', `${this.#registry} names no token server`);
    }
    // A login must not leave in the clear because a registry says so.
    if (url.protocol !== 'https:' && !isLoopback(url.host) && !isLoopback(this.#registry)) {
      throw new FirstlightError('unreachable', `${this.#registry}: its token server is not https`);
    }
    const scope = parameters.get('scope') ?? `repository:${this.#repository}:pull`;
    const service = parameters.get('service') ?? '';
    const ask = async () => {
      const response = await this.#ask(url, scope, service);
      if (response.status >= 500 || response.status === 429) {
        await response.body.dump();
        throw new Transient(`the token server ${url.host} answers ${response.status}`);
      }
      if (response.status !== 200) {
        await response.body.dump();
        throw await this.refused();
      }
      return readBody(response, TOKEN_BYTES_MAX, `the token of ${url.host}`);
    };
    const bytes = await this.#http.retry(ask, true, undefined);
    let json: unknown;
    try {
      json = JSON.parse(bytes.toString('utf8'));
    } catch {
      throw new FirstlightError('corrupt', `the token server ${url.host} answers no JSON`);
    }
    const parsed = v.safeParse(Token, json);
    const token = parsed.success ? (parsed.output.token ?? parsed.output.access_token) : undefined;
    // What stands in a header must not break out of it.
    if (token === undefined || !/^[\x21-\x7e]+$/.test(token)) {
      throw new FirstlightError('corrupt', `the token server ${url.host} gives no token`);
    }
    return token;
  }

  #ask(url: URL, scope: string, service: string) {
    const identity = this.#auth?.identityToken;
    if (identity !== undefined) {
      const form = new URLSearchParams({
        grant_type: 'refresh_token',
        refresh_token: identity,
        client_id: 'firstlight',
        service,
        scope,
      });
      return this.#http.send(url, {
        method: 'POST',
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: form.toString(),
      });
    }
    const asked = new URL(url);
    if (service !== '') asked.searchParams.set('service', service);
    for (const one of scope.split(' ')) asked.searchParams.append('scope', one);
    const basic = this.#basic();
    return this.#http.send(asked, { headers: basic === undefined ? {} : { authorization: basic } });
  }

  /** The error for a request that the registry will not answer for want of a login. */
  async refused(): Promise<FirstlightError> {
    const name = `${this.#registry}/${this.#repository}`;
    if (this.#auth !== undefined) {
      return new FirstlightError('unauthorized', `${name}: the login was refused`, {
        hint: `check that the image exists, and log in again with docker login ${this.#registry}`,
      });
    }
    const helper = await dockerHelper(this.#registry).catch(() => undefined);
    const hint =
      helper === undefined
        ? `check that the image exists, and log in with docker login ${this.#registry}`
        : `the helper 'docker-credential-${helper}' has none, or is not installed; log in with docker login ${this.#registry}`;
    return new FirstlightError('unauthorized', `${name}: the registry wants a login`, { hint });
  }
}
