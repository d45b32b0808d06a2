// Mirrors, their order and their logins, against small registries in this process. With TLS and Debian's registry:
// test/e2e/registry-hosts.test.ts.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import type { FirstlightError } from '../errors/errors.ts';
import { MEDIA } from './manifest.ts';
import { mergeImage } from './merge.ts';
import { openRegistry, type RegistryOptions } from './registry.ts';
import { registryHosts, splitHostsDirs } from './registry-hosts.ts';
import { MemorySink, names, pack, view } from './testkit.ts';
import { FakeRegistry, failure } from './testkit-registry.ts';

async function withDirectory(body: (dir: string) => Promise<void>): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-hosts-'));
  try {
    await body(dir);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

async function put(dir: string, name: string, text: string): Promise<void> {
  await mkdir(join(dir, name, '..'), { recursive: true });
  await writeFile(join(dir, name), text);
}

interface World {
  dir: string;
  origin: FakeRegistry;
  mirror: FakeRegistry;
  /** Host of a mirror that nobody answers at. */
  nowhere: string;
  fallbacks: string[];
  /** Writes the origin's hosts.toml. */
  hosts(text: string): Promise<void>;
  take(options?: Partial<RegistryOptions> & { digest?: string }): Promise<string[]>;
}

/** An origin with an image, and a mirror without one. */
async function withMirror(body: (world: World) => Promise<void>): Promise<void> {
  await withDirectory(async (dir) => {
    const [origin, mirror, gone] = await Promise.all([
      new FakeRegistry().start(),
      new FakeRegistry().start(),
      new FakeRegistry().start(),
    ]);
    gone.close();
    const fallbacks: string[] = [];
    const options: RegistryOptions = {
      platform: 'linux/amd64',
      auth: null,
      retryDelayMs: 1,
      hostsDirs: [join(dir, 'absent'), dir],
      onFallback: (host, error) => fallbacks.push(`${host} ${error.kind}`),
    };
    try {
      origin.tag('latest', origin.image('amd64', [await pack(names('a')), await pack(BIG)]));
      await body({
        ...{ dir, origin, mirror, fallbacks },
        nowhere: gone.url.slice('http://'.length),
        hosts: (text) => put(dir, `${origin.url.slice('http://'.length)}/hosts.toml`, text),
        async take({ digest, ...more } = {}) {
          const reference = `${origin.reference}${digest === undefined ? '' : `@${digest}`}`;
          const source = await openRegistry(reference, { ...options, ...more });
          try {
            const sink = new MemorySink();
            return view((await mergeImage(source, sink)).root, sink).paths();
          } finally {
            await source.close();
          }
        },
      });
    } finally {
      origin.close();
      mirror.close();
    }
  });
}

const BIG = [
  { name: 'big', body: Buffer.from(Array.from({ length: 400_000 }, () => Math.random() * 256)) },
];
const WHOLE = ['a', 'big'];
const hostOf = (registry: FakeRegistry) => registry.url.slice('http://'.length);
const copy = (from: FakeRegistry, to: FakeRegistry) => {
  for (const [key, blob] of from.blobs) to.blobs.set(key, blob);
};

test('a mirror that has the image is asked alone, and told which registry is meant', async (t) => {
  await withMirror(async ({ origin, mirror, hosts, take, fallbacks }) => {
    copy(origin, mirror);
    await hosts(`[host."${mirror.url}"]`);
    const asked = new Set<string | null>();
    mirror.first = (_, __, url) => {
      asked.add(url.searchParams.get('ns'));
      return false;
    };
    t.deepEqual(await take(), WHOLE);
    t.deepEqual(origin.requests, []);
    t.deepEqual([...asked], [hostOf(origin)]);
    t.deepEqual(fallbacks, []);
  });
});

test('mirrors that lack the image, refuse, fail or are not there: the next one is asked, and it is told', async (t) => {
  await withMirror(async ({ origin, mirror, nowhere, hosts, take, fallbacks }) => {
    await hosts(`[host."http://${nowhere}"]\n[host."${mirror.url}"]`);
    t.deepEqual(await take(), WHOLE);
    t.is(fallbacks[0], `${nowhere} unreachable`);
    t.is(fallbacks[1], `${hostOf(mirror)} not-found`);
    for (const [status, kind] of [
      [401, 'unauthorized'],
      [403, 'unauthorized'],
      [500, 'unreachable'],
      [418, 'unreachable'],
    ] as const) {
      fallbacks.length = 0;
      mirror.requests.length = 0;
      mirror.first = (_, response) => {
        response.writeHead(status).end('no');
        return true;
      };
      await hosts(`[host."${mirror.url}"]`);
      t.deepEqual(await take(), WHOLE, String(status));
      t.is(fallbacks[0], `${hostOf(mirror)} ${kind}`, String(status));
      // Once or twice, and not for every layer again.
      t.true(mirror.requests.length <= 2, String(status));
    }
    t.true(origin.requests.length > 0);
  });
});

test('a mirror that may not resolve is not asked for a tag, but for what it names', async (t) => {
  await withMirror(async ({ origin, mirror, hosts, take }) => {
    copy(origin, mirror);
    mirror.blobs.set('latest', { bytes: Buffer.from('another image'), type: 'text/plain' });
    await hosts(`[host."${mirror.url}"]\ncapabilities = ["pull"]`);
    t.deepEqual(await take(), WHOLE);
    t.deepEqual(origin.requests, ['GET /v2/team/app/manifests/latest']);
    t.true(mirror.requests.length > 0);
    t.false(mirror.requests.some((each) => each.endsWith('latest')));
    await hosts(`capabilities = ["resolve"]`);
    const error = await failure(take());
    t.is(error.kind, 'usage');
    t.regex(error.line, /no host of .* has the capability 'pull'/);
  });
});

test('a mirror that stops in the middle of a layer: the registry goes on from there', async (t) => {
  await withMirror(async ({ origin, mirror, hosts, take, fallbacks }) => {
    copy(origin, mirror);
    await hosts(`[host."${mirror.url}"]`);
    const starts: string[] = [];
    let cut = false;
    mirror.first = (request, response, url) => {
      const blob = mirror.blobs.get(url.pathname.replace(/^.*\//, ''));
      if (cut) {
        request.socket.destroy();
        return true;
      }
      if (blob === undefined || blob.bytes.length < 300_000) return false;
      cut = true;
      response.writeHead(200, { 'content-length': blob.bytes.length });
      response.write(blob.bytes.subarray(0, 200_000), () => response.destroy());
      return true;
    };
    origin.first = (request) => {
      starts.push(request.headers.range ?? '');
      return false;
    };
    t.deepEqual(await take(), WHOLE);
    t.true(cut);
    t.deepEqual(fallbacks, [`${hostOf(mirror)} unreachable`]);
    t.is(starts.length, 1);
    t.regex(starts[0]!, /^bytes=[1-9]\d*-$/);
  });
});

test('a mirror that gives other bytes for a digest is not believed', async (t) => {
  await withMirror(async ({ origin, mirror, hosts, take, fallbacks }) => {
    copy(origin, mirror);
    const isManifest = ([key, { type }]: [string, { type: string }]) =>
      key !== 'latest' && type === MEDIA.ociManifest;
    const [digest] = [...origin.blobs].find(isManifest)!;
    mirror.blobs.set(digest, { bytes: Buffer.from('{}'), type: MEDIA.ociManifest });
    await hosts(`[host."${mirror.url}"]`);
    t.deepEqual(await take({ digest }), WHOLE);
    t.deepEqual(fallbacks, [`${hostOf(mirror)} corrupt`]);
  });
});

test('all have failed: the last error, with those before it', async (t) => {
  await withMirror(async ({ origin, mirror, nowhere, hosts, take }) => {
    await hosts(`[host."http://${nowhere}"]\n[host."${mirror.url}"]`);
    origin.blobs.clear();
    const error = await failure(take());
    t.is(error.kind, 'not-found');
    t.regex(error.line, new RegExp(`before: cannot reach ${nowhere}`));
  });
});

test('the login is for the registry alone; headers of the file are for their host, where they may be used', async (t) => {
  await withMirror(async ({ origin, mirror, hosts, take }) => {
    copy(origin, mirror);
    const storage = await new FakeRegistry().start();
    copy(origin, storage);
    const seen: string[] = [];
    const secrets = (who: string, registry: FakeRegistry, answer?: FakeRegistry['first']) => {
      registry.first = (request, response, url) => {
        const { authorization = '', 'x-key': key = '' } = request.headers;
        if (authorization !== '' || key !== '') seen.push(`${who} ${authorization} ${key}`);
        return answer?.(request, response, url);
      };
    };
    secrets('storage', storage);
    secrets('origin', origin);
    secrets('mirror', mirror, (request, response, url) => {
      if (url.pathname.includes('/blobs/')) {
        response.writeHead(307, { location: `${storage.url}${url.pathname}` }).end();
        return true;
      }
      if (request.headers['x-key'] === 'k1') return false;
      response.writeHead(401, { 'www-authenticate': 'Basic realm=x' }).end();
      return true;
    });
    try {
      await hosts(`[host."${mirror.url}"]\n[host."${mirror.url}".header]\nX-Key = "k1"`);
      const auth = { username: 'me', password: 'pw' };
      t.deepEqual(await take({ auth, ownCredentials: true }), WHOLE);
      t.deepEqual([...new Set(seen)], ['mirror  k1']);
      // A client's own login, or none: what the machine is known by stays here, and the mirror refuses.
      for (const given of [auth, null]) {
        seen.length = 0;
        t.deepEqual(await take({ auth: given }), WHOLE);
        t.deepEqual(seen, []);
      }
    } finally {
      storage.close();
    }
  });
});

test('directories: the first that has the host, HOST_PORT_ before HOST:PORT before _default', async (t) => {
  await withDirectory(async (dir) => {
    const options = {
      dirs: [join(dir, 'one'), join(dir, 'two')],
      plainHttp: false,
      credentials: true,
    };
    const first = async (registry: string) =>
      (await registryHosts(registry, options)).map(({ url, mirror }) => `${url.href} ${mirror}`);
    t.deepEqual(await first('r.example:5000'), ['https://r.example:5000/v2 false']);
    t.deepEqual(await first('docker.io'), ['https://registry-1.docker.io/v2 false']);
    t.deepEqual(await first('127.0.0.1:5000'), ['http://127.0.0.1:5000/v2 false']);
    await put(dir, 'two/_default/hosts.toml', '[host."https://two.example"]');
    t.deepEqual(await first('r.example:5000'), [
      'https://two.example/v2 true',
      'https://r.example:5000/v2 false',
    ]);
    await put(dir, 'two/r.example:5000/hosts.toml', 'server = "https://colon.example"');
    t.deepEqual(await first('r.example:5000'), ['https://colon.example/v2 true']);
    await put(dir, 'two/r.example_5000_/hosts.toml', 'server = "https://r.example:5000"');
    t.deepEqual(await first('r.example:5000'), ['https://r.example:5000/v2 false']);
    await put(dir, 'one/_default/hosts.toml', 'server = "https://one.example"');
    t.deepEqual(await first('r.example:5000'), ['https://one.example/v2 true']);
    t.deepEqual(splitHostsDirs('/a:/b::'), ['/a', '/b']);
    t.deepEqual(splitHostsDirs(''), []);
  });
});

test('files that are no certificates, or are not there, are named', async (t) => {
  await withDirectory(async (dir) => {
    const options = { dirs: [dir], plainHttp: false, credentials: false };
    const wrong = async (registry: string): Promise<FirstlightError> =>
      failure(registryHosts(registry, options));
    await put(dir, 'a.example/ca.crt', 'not a certificate');
    t.regex((await wrong('a.example')).line, /a\.example\/ca\.crt holds no certificates/);
    await put(dir, 'b.example/hosts.toml', 'ca = "gone.crt"');
    const gone = await wrong('b.example');
    t.is(gone.kind, 'not-found');
    t.regex(gone.line, /b\.example\/gone\.crt/);
    await put(dir, 'c.example/client.cert', 'nothing');
    await put(dir, 'c.example/client.key', 'k3y');
    const client = await wrong('c.example');
    t.is(client.kind, 'usage');
    t.regex(client.line, /client\.cert and .*client\.key are no certificate and its key/);
    t.notRegex(`${client.line} ${client.cause}`, /k3y/);
    await put(dir, 'd.example/hosts.toml', 'ca = [');
    t.regex((await wrong('d.example')).line, /d\.example\/hosts\.toml: line 1/);
    await mkdir(join(dir, 'e.example/hosts.toml'), { recursive: true });
    t.regex((await wrong('e.example')).line, /EISDIR/);
  });
});
