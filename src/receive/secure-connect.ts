// How connections to a delta server are made: plain, or with TLS, trusting the authorities that everything else on this
// machine trusts. The server itself speaks plain HTTP; TLS is a proxy's before it.
import { createSecureContext } from 'node:tls';
import { buildConnector } from 'undici';
import { commonAuthorities } from '../image/registry-hosts.ts';

type Connector = ReturnType<typeof buildConnector>;

/** A connector with the authorities of now. Parsing them takes tens of ms, so it is done once. */
async function trusting(timeoutMs: number): Promise<Connector> {
  const secureContext = createSecureContext({ ca: await commonAuthorities() });
  // With HTTP/2 all lanes to a server would be one connection.
  return buildConnector({ timeout: timeoutMs, secureContext, allowH2: false });
}

/**
 * undici's option `connect` for a server: over https it trusts what the system trusts (or the file that SSL_CERT_FILE
 * names), and what NODE_EXTRA_CA_CERTS names.
 */
export function connectTo(server: URL, timeoutMs: number): { timeout: number } | Connector {
  if (server.protocol !== 'https:') return { timeout: timeoutMs };
  let made: Promise<Connector> | undefined;
  return (options, callback) => {
    made ??= trusting(timeoutMs);
    made.then(
      (connect) => connect(options, callback),
      (error: Error) => callback(error, null),
    );
  };
}

/** Codes of node:tls where a certificate is not trusted, or not for this name. */
const UNTRUSTED =
  /^(CERT_|ERR_TLS_CERT_|SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_(GET|VERIFY)_|HOSTNAME_MISMATCH)/;

/** True for the code of an error between the connection and the first request. */
export function isOfTls(code: string | undefined): boolean {
  return code !== undefined && (UNTRUSTED.test(code) || /^(ERR_SSL_|EPROTO$)/.test(code));
}

/** What to do about an error of connecting, where it is about TLS. */
export function certificateHint(code: string | undefined): string | undefined {
  if (!isOfTls(code)) return undefined;
  return UNTRUSTED.test(code!)
    ? 'name the authority that signed its certificate in NODE_EXTRA_CA_CERTS, for the daemon too'
    : 'check whether its URL begins with http: or https:';
}
