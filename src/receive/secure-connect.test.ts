// A delta server behind TLS: what is trusted, and what the error says where it is not. By commands:
// src/cli/token.test.ts.
import test from 'ava';
import { makeImage, scratch, someFiles } from '../../test/receive/fixture.ts';
import { assertWhole, LARGE, makeStage, SMALL } from '../../test/receive/stage.ts';
import { makeCertificates, startTlsProxy } from '../../test/receive/tls-proxy.ts';
import type { FirstlightError } from '../errors/errors.ts';
import { Receiver, useConnections } from './receiver.ts';

const PATIENT = { connectMs: 60_000, deltaMs: 60_000, headMs: 60_000, idleMs: 60_000 };
const IMAGE = makeImage('tls', { ...someFiles('tls', SMALL), ...someFiles('large', LARGE) });

test.serial(
  'an image comes over TLS, by an authority that the system trusts and no other',
  async (t) => {
    const { store, server, root, options } = await makeStage(t, IMAGE);
    const certificates = await makeCertificates(await scratch(t));
    const proxy = await startTlsProxy(t, server.url, certificates);
    server.deltaRanges = true;
    useConnections(store, 4);
    const open = (url: string, more = {}) =>
      Receiver.open(store, options({ server: url, timeouts: PATIENT, ...more }));
    const error = await t.throwsAsync<FirstlightError>(open(proxy.url));
    t.is(error!.kind, 'unreachable');
    t.regex(
      error!.line,
      /UNABLE_TO_VERIFY_LEAF_SIGNATURE.*; name the authority .* NODE_EXTRA_CA_CERTS/,
    );
    t.is(server.requests.length, 0, 'nothing was asked for');

    // Another client than the one that has read what is trusted.
    process.env.SSL_CERT_FILE = certificates.authority;
    t.teardown(() => {
      delete process.env.SSL_CERT_FILE;
    });
    const receiver = await open(proxy.url, { timeouts: { ...PATIENT, connectMs: 60_001 } });
    await receiver.complete;
    await assertWhole(t, root, IMAGE);
    t.is(receiver.progress().retries, 0);
    t.deepEqual([...proxy.protocols], ['http/1.1'], 'pieces over connections of their own');
    await receiver.close();
  },
);

test.serial('https where plain HTTP is spoken says so', async (t) => {
  const { store, server, options } = await makeStage(t, IMAGE);
  const url = server.url.replace('http:', 'https:');
  const error = await t.throwsAsync<FirstlightError>(
    Receiver.open(store, options({ server: url })),
  );
  t.is(error!.kind, 'unreachable');
  t.regex(error!.line, /; check whether its URL begins with http: or https:$/);
});
