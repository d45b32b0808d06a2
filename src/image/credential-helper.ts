// Logins that a credential helper keeps: the program `docker-credential-NAME`, by docker's protocol (`get`, the
// registry on standard input, JSON on standard output). What does not live here: which helper is asked.
import { spawn } from 'node:child_process';
import * as v from 'valibot';
import { FirstlightError } from '../errors/errors.ts';
import type { RegistryAuth } from './docker-config.ts';

/** A keychain may ask its owner first; one that waits longer is stuck. */
const TIMEOUT_MS = 30_000;
const OUTPUT_MAX = 1 << 16;
const NAME = /^[A-Za-z0-9._-]+$/;
/** What helpers print for a registry that they have no login of (docker's own words for it). */
const NOT_FOUND = /credentials not found|no credentials/i;
/** User name that stands for a token in the place of the password. */
const TOKEN_USER = '<token>';

const Answer = v.object({ Username: v.string(), Secret: v.string() });

interface Output {
  code: number | null;
  text: string;
}

/** Runs a helper; undefined where there is no such program. */
function ask(program: string, registry: string): Promise<Output | undefined> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, ['get'], { stdio: ['pipe', 'pipe', 'ignore'] });
    let text = '';
    const timer = setTimeout(() => child.kill('SIGKILL'), TIMEOUT_MS);
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
      if (text.length > OUTPUT_MAX) child.kill('SIGKILL');
    });
    child.once('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      if (error.code === 'ENOENT') resolve(undefined);
      else reject(error);
    });
    child.once('close', (code) => {
      clearTimeout(timer);
      resolve({ code, text });
    });
    // It may end without having read.
    child.stdin.on('error', () => undefined);
    child.stdin.end(`${registry}\n`);
  });
}

/**
 * The login that a helper has for a registry; undefined where it has none, or is not installed.
 * @param helper    NAME of `docker-credential-NAME`
 * @param registry  as docker names it to helpers
 * @throws FirstlightError `usage` where the helper fails; nothing that it printed is in it
 */
export async function readHelperAuth(
  helper: string,
  registry: string,
): Promise<RegistryAuth | undefined> {
  const program = `docker-credential-${helper}`;
  const hint = `try it: echo ${registry} | ${program} get`;
  if (!NAME.test(helper)) {
    throw new FirstlightError('usage', `'${helper}' is no name of a credential helper`);
  }
  const output = await ask(program, registry);
  if (output === undefined || NOT_FOUND.test(output.text)) return undefined;
  if (output.code !== 0) throw new FirstlightError('usage', `${program} failed`, { hint });
  let answer: v.InferOutput<typeof Answer>;
  try {
    answer = v.parse(Answer, JSON.parse(output.text));
  } catch {
    // Neither the cause nor the text may go into the error: they hold a password.
    throw new FirstlightError('usage', `${program} does not answer as a credential helper`, {
      hint,
    });
  }
  if (answer.Username === '' && answer.Secret === '') return undefined;
  if (answer.Username === TOKEN_USER) return { identityToken: answer.Secret };
  return { username: answer.Username, password: answer.Secret };
}
