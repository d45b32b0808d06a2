// The registry client against a small registry in this process that can be told to misbehave. The
// real one is asked in test/e2e/intake-registry.test.ts.
import type { IncomingMessage, ServerResponse } from 'node:http';
import test from 'ava';
import { type ErrorKind, FirstlightError } from '../errors/errors.ts';
import { parseChallenges } from './challenge.ts';
import { sha256Digest } from './digest.ts';
import { MEDIA } from './manifest.ts';
import { mergeImage } from './merge.ts';
import { openRegistry, type RegistryOptions } from './registry.ts';
import { MemorySink, names, pack, view } from './testkit.ts';
import { failure, withRegistry } from './testkit-registry.ts';

const OPTIONS: RegistryOptions = { platform: 'linux/amd64', auth: null, retryDelayMs: 1 };

async function take(reference: string, options: Partial<RegistryOptions> = {}) {
  const source = await openRegistry(reference, { ...OPTIONS, ...options });
  try {
    const sink = new MemorySink();
    return { source, image: view((await mergeImage(source, sink)).root, sink) };
  } finally {
    await source.close();
  }
}

const BIG = [
  { name: 'big', body: Buffer.from(Array.from({ length: 500_000 }, () => Math.random() * 256)) },
];

test('an image comes whole, with its own manifest, config and digest', async (t) => {
  await withRegistry(async (registry) => {
    const layers = [await pack(names('a', 'd/', 'd/x')), await pack(names('d/.wh.x', 'b'))];
    const manifest = registry.image('amd64', layers);
    registry.tag('latest', manifest);
    const { source, image } = await take(registry.reference);
    t.deepEqual(image.paths(), ['a', 'b', 'd/']);
    t.is(source.digest, manifest.digest);
    t.is(sha256Digest(source.manifest), manifest.digest);
    t.is(source.platform, 'linux/amd64');
    t.is(source.name, `${registry.reference}:latest`);
    t.is((await take(`${registry.reference}@${manifest.digest}`)).source.digest, manifest.digest);
  });
});

test('the right platform is taken out of an index; variants fall back; others are named', async (t) => {
  await withRegistry(async (registry) => {
    const entry = async (architecture: string, variant?: string) => ({
      ...registry.image(architecture, [await pack(names(`is-${architecture}${variant ?? ''}`))]),
      platform: { os: 'linux', architecture, ...(variant === undefined ? {} : { variant }) },
    });
    const inner = {
      schemaVersion: 2,
      manifests: [await entry('arm', 'v5'), await entry('arm', 'v6'), await entry('arm', 'v4')],
    };
    const index = {
      schemaVersion: 2,
      manifests: [
        await entry('amd64'),
        await entry('arm64', 'v8'),
        { ...(await entry('unknown')), platform: { os: 'unknown', architecture: 'unknown' } },
        registry.put(Buffer.from(JSON.stringify(inner)), MEDIA.ociIndex),
      ],
    };
    registry.tag('1', registry.put(Buffer.from(JSON.stringify(index)), MEDIA.ociIndex));
    const reference = `${registry.reference}:1`;
    for (const [platform, path, normal] of [
      ['linux/amd64', 'is-amd64', 'linux/amd64'],
      ['linux/amd64/v3', 'is-amd64', 'linux/amd64'],
      ['linux/x86_64', 'is-amd64', 'linux/amd64'],
      ['linux/arm64', 'is-arm64v8', 'linux/arm64'],
      ['linux/arm/v7', 'is-armv6', 'linux/arm/v6'],
      ['linux/arm/v5', 'is-armv5', 'linux/arm/v5'],
    ] as const) {
      const { source, image } = await take(reference, { platform });
      t.deepEqual(image.paths(), [path], platform);
      t.is(source.platform, normal, platform);
    }
    const error = await failure(take(reference, { platform: 'linux/riscv64' }));
    t.is(error.kind, 'platform');
    t.regex(
      error.line,
      /not for linux\/riscv64: it has linux\/amd64, linux\/arm64, linux\/arm\/v5/,
    );
    t.notRegex(error.line, /unknown/);
  });
});

test('a lone manifest for another platform is refused', async (t) => {
  await withRegistry(async (registry) => {
    registry.tag('latest', registry.image('s390x', [await pack([])]));
    const error = await failure(take(registry.reference));
    t.is(error.kind, 'platform');
    t.regex(error.line, /it has linux\/s390x/);
  });
});

test('a download that breaks again and again goes on where it stopped', async (t) => {
  await withRegistry(async (registry) => {
    const layer = await pack(BIG);
    registry.tag('latest', registry.image('amd64', [layer]));
    const starts: number[] = [];
    registry.first = (request, response, url) => {
      const blob = registry.blobs.get(url.pathname.split('/').at(-1)!);
      if (!url.pathname.includes('/blobs/') || blob!.bytes.length < 100_000) return false;
      const start = Number(/\d+/.exec(request.headers.range ?? '0')![0]);
      starts.push(start);
      if (starts.length > 8) return false;
      const total = blob!.bytes.length;
      response.writeHead(start === 0 ? 200 : 206, {
        'content-length': total - start,
        'content-range': `bytes ${start}-${total - 1}/${total}`,
      });
      response.write(blob!.bytes.subarray(start, start + 50_000), () => request.socket.destroy());
      return true;
    };
    const { image } = await take(registry.reference);
    t.true(image.sink.contents.get(image.at('big').digest!)!.equals(BIG[0]!.body));
    t.true(starts.length > 8);
    t.deepEqual(
      starts,
      [...starts].sort((x, y) => x - y),
    );
    t.true(starts.at(-1)! >= 400_000);
  });
});

test('a server without ranges, and one with errors in between, are dealt with', async (t) => {
  await withRegistry(async (registry) => {
    registry.tag('latest', registry.image('amd64', [await pack(BIG)]));
    let calls = 0;
    registry.first = (request, response, url) => {
      const blob = registry.blobs.get(url.pathname.split('/').at(-1)!);
      if (!url.pathname.includes('/blobs/') || blob!.bytes.length < 100_000) return false;
      calls++;
      if (calls === 2) {
        response.writeHead(503).end();
        return true;
      }
      if (calls === 3) {
        response.writeHead(429, { 'retry-after': '0' }).end();
        return true;
      }
      response.writeHead(200, { 'content-length': blob!.bytes.length });
      if (calls === 1)
        response.write(blob!.bytes.subarray(0, 70_000), () => request.socket.destroy());
      else response.end(blob!.bytes);
      return true;
    };
    const { image } = await take(registry.reference);
    t.is(image.at('big').size, 500_000);
    t.is(calls, 4);
  });
});

/** Opens with as little patience as is enough for a registry that answers, on a machine as busy as this. */
async function impatient(reference: string): ReturnType<typeof openRegistry> {
  for (let silenceMs = 60; ; silenceMs *= 2) {
    try {
      return await openRegistry(reference, { ...OPTIONS, silenceMs });
    } catch (error) {
      if (silenceMs > 30_000) throw error;
    }
  }
}

test('a registry that never comes back, or falls silent, ends in an error, not in a wait', async (t) => {
  await withRegistry(async (registry) => {
    registry.tag('latest', registry.image('amd64', [await pack(BIG)]));
    const source = await impatient(registry.reference);
    registry.first = (_, response, url) => {
      if (!url.pathname.includes('/blobs/')) return false;
      // Sends the head and then nothing.
      response.writeHead(200, { 'content-length': 400_000 });
      response.flushHeaders();
      return true;
    };
    const silent = await failure(mergeImage(source, new MemorySink()));
    t.is(silent.kind, 'unreachable');
    t.regex(silent.line, /stopped sending/);
    registry.close();
    const gone = await failure(mergeImage(source, new MemorySink()));
    t.is(gone.kind, 'unreachable');
    t.regex(gone.line, /refused/);
    await source.close();
  });
});

test('no registry, no such tag, no registry at all: clear errors at once', async (t) => {
  await withRegistry(async (registry) => {
    const missing = await failure(take(`${registry.reference}:none`));
    t.is(missing.kind, 'not-found');
    t.regex(
      missing.line,
      /team\/app:none: the registry does not have it; check the name and the tag/,
    );
    registry.first = (_, response) => {
      response.writeHead(200).end('<html>welcome</html>');
      return true;
    };
    t.regex((await failure(take(registry.reference))).line, /is not JSON/);
    const { reference } = registry;
    registry.close();
    const start = Date.now();
    const none = await failure(take(reference, { retryDelayMs: 200_000 }));
    t.is(none.kind, 'unreachable');
    t.true(Date.now() - start < 100_000, 'nothing is tried again');
  });
});

test('changed manifests, configs and layers are refused', async (t) => {
  await withRegistry(async (registry) => {
    const layer = await pack(names('a'));
    const manifest = registry.image('amd64', [layer]);
    registry.tag('latest', manifest);
    const reference = `${registry.reference}@${manifest.digest}`;
    for (const [digest, blob] of registry.blobs) {
      if (digest === 'latest') continue;
      const bytes = Buffer.from(blob.bytes);
      bytes[bytes.length - 5]! ^= 1;
      registry.blobs.set(digest, { ...blob, bytes });
      t.is((await failure(take(reference))).kind, 'corrupt', blob.type);
      registry.blobs.set(digest, blob);
    }
    t.deepEqual((await take(reference)).image.paths(), ['a']);
  });
});

test('another manifest than the one asked for is refused, by its digest alone', async (t) => {
  await withRegistry(async (registry) => {
    const wanted = registry.image('amd64', [await pack(names('a'))]);
    const other = registry.image('amd64', [await pack(names('b'))]);
    registry.tag(wanted.digest, other);
    const byDigest = await failure(take(`${registry.reference}@${wanted.digest}`));
    t.is(byDigest.kind, 'corrupt');
    t.regex(byDigest.line, /the digest is sha256:[0-9a-f]{64}, not sha256:/);
    const platform = { os: 'linux', architecture: 'amd64' };
    const index = { schemaVersion: 2, manifests: [{ ...wanted, size: other.size, platform }] };
    registry.tag('1', registry.put(Buffer.from(JSON.stringify(index)), MEDIA.ociIndex));
    const inIndex = await failure(take(`${registry.reference}:1`));
    t.regex(inIndex.line, /the digest is sha256:/);
    registry.tag('2', wanted);
    registry.first = (_, response, url) => {
      if (!url.pathname.endsWith('/2')) return false;
      response.writeHead(200, { 'docker-content-digest': `sha256:${'0'.repeat(64)}` });
      response.end(registry.blobs.get(other.digest)!.bytes);
      return true;
    };
    t.regex((await failure(take(`${registry.reference}:2`))).line, /the digest is sha256:/);
  });
});

test('manifests that mean two things, and things that are no images, are refused', async (t) => {
  await withRegistry(async (registry) => {
    const manifest = registry.image('amd64', [await pack(names('a'))]);
    const json = JSON.parse(registry.blobs.get(manifest.digest)!.bytes.toString());
    const cases: [object, ErrorKind, RegExp][] = [
      [{ ...json, manifests: [] }, 'corrupt', /both an index and a manifest/],
      [{ schemaVersion: 2 }, 'corrupt', /neither/],
      [{ schemaVersion: 1, fsLayers: [] }, 'unsupported', /schema 1/],
      [
        {
          ...json,
          config: { ...json.config, mediaType: 'application/vnd.cncf.helm.config.v1+json' },
        },
        'unsupported',
        /no container image/,
      ],
      [{ ...json, layers: [] }, 'corrupt', /0 layers and the config 1/],
      [
        { ...json, layers: [{ ...json.layers[0], digest: 'sha256:../../etc' }] },
        'corrupt',
        /malformed digest/,
      ],
      [{ ...json, layers: [{ ...json.layers[0], size: -1 }] }, 'corrupt', /size/],
      [{ ...json, layers: [{ ...json.layers[0], size: 1 }] }, 'corrupt', /longer than its 1 bytes/],
      [{ ...json, layers: [{ ...json.layers[0], size: 1e6 }] }, 'unreachable', /ended after/],
      [
        { ...json, layers: [{ ...json.layers[0], mediaType: `${MEDIA.ociLayer}+gzip+encrypted` }] },
        'unsupported',
        /encrypted/,
      ],
    ];
    for (const [changed, kind, message] of cases) {
      const type = MEDIA.ociManifest;
      registry.tag('latest', registry.put(Buffer.from(JSON.stringify(changed)), type));
      const error = await failure(take(registry.reference));
      t.is(error.kind, kind, error.line);
      t.regex(error.line, message);
    }
  });
});

test('Basic: the login is sent when asked for, and only to the registry itself', async (t) => {
  await withRegistry(async (storage) => {
    await withRegistry(async (registry) => {
      registry.tag('latest', registry.image('amd64', [await pack(names('a'))]));
      const basic = `Basic ${Buffer.from('me:se:cret').toString('base64')}`;
      registry.first = (request, response, url) => {
        if (request.headers.authorization !== basic) {
          response.writeHead(401, { 'www-authenticate': 'Basic realm="r, x"' }).end();
          return true;
        }
        if (!url.pathname.includes('/blobs/')) return false;
        response.writeHead(307, { location: `${storage.url}${url.pathname}?sig=1` }).end();
        return true;
      };
      for (const [digest, blob] of registry.blobs) storage.blobs.set(digest, blob);
      const leaks: string[] = [];
      storage.first = (request) => {
        if (request.headers.authorization !== undefined) leaks.push(request.url!);
        return false;
      };
      const auth = { username: 'me', password: 'se:cret' };
      t.deepEqual((await take(registry.reference, { auth })).image.paths(), ['a']);
      t.deepEqual(leaks, []);
      t.is(storage.requests.length, 2);
      const wrong = { username: 'me', password: 'no' };
      const refused = await failure(take(registry.reference, { auth: wrong }));
      t.is(refused.kind, 'unauthorized');
      t.regex(refused.line, /the login was refused; .*docker login/);
      const none = await failure(take(registry.reference));
      t.is(none.kind, 'unauthorized');
      t.regex(none.line, /wants a login/);
    });
  });
});

test('bearer: a token is fetched, used, and fetched again when it has run out', async (t) => {
  await withRegistry(async (registry) => {
    registry.tag(
      'latest',
      registry.image('amd64', [await pack(names('a')), await pack(names('b'))]),
    );
    let valid = 0;
    let uses = 0;
    const asked: string[] = [];
    registry.first = (request, response, url) => {
      if (url.pathname === '/token') {
        asked.push(`${url.search} ${request.headers.authorization ?? ''}`);
        response.writeHead(200).end(JSON.stringify({ token: `t${++valid}`, expires_in: 60 }));
        uses = 0;
        return true;
      }
      // Each token is good for two requests.
      if (request.headers.authorization === `Bearer t${valid}` && uses++ < 2) return false;
      const parameters = `realm="${registry.url}/token",service="reg",scope="repository:team/app:pull"`;
      response.writeHead(401, { 'www-authenticate': `Bearer ${parameters}` }).end();
      return true;
    };
    const auth = { username: 'me', password: 'pw' };
    t.deepEqual((await take(registry.reference, { auth })).image.paths(), ['a', 'b']);
    t.is(valid, 2);
    t.is(asked[0], `?service=reg&scope=repository%3Ateam%2Fapp%3Apull Basic ${btoa('me:pw')}`);
  });
});

test('bearer: a refused login, a token server without tokens, and identity tokens', async (t) => {
  await withRegistry(async (registry) => {
    registry.tag('latest', registry.image('amd64', [await pack(names('a'))]));
    let answer: (request: IncomingMessage, response: ServerResponse) => void = () => {};
    registry.first = (request, response, url) => {
      if (url.pathname === '/token') {
        answer(request, response);
        return true;
      }
      if (request.headers.authorization === 'Bearer good') return false;
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${registry.url}/token"` }).end();
      return true;
    };
    answer = (_, response) => response.writeHead(401).end();
    t.is((await failure(take(registry.reference))).kind, 'unauthorized');
    answer = (_, response) => response.writeHead(200).end('{}');
    t.regex((await failure(take(registry.reference))).line, /gives no token/);
    answer = (_, response) => response.writeHead(200).end('{"token":"bad\\r\\nx: y"}');
    t.regex((await failure(take(registry.reference))).line, /gives no token/);
    answer = (_, response) => response.writeHead(200).end('{"token":"bad"}');
    t.is((await failure(take(registry.reference))).kind, 'unauthorized');
    let form = '';
    answer = (request, response) => {
      request.on('data', (chunk) => {
        form += chunk;
      });
      request.on('end', () => response.writeHead(200).end('{"access_token":"good"}'));
    };
    const { image } = await take(registry.reference, { auth: { identityToken: 'id' } });
    t.deepEqual(image.paths(), ['a']);
    t.like(Object.fromEntries(new URLSearchParams(form)), {
      grant_type: 'refresh_token',
      refresh_token: 'id',
      scope: 'repository:team/app:pull',
    });
  });
});

test('redirects without end, and to other protocols, are refused', async (t) => {
  await withRegistry(async (registry) => {
    for (const location of ['/v2/team/app/manifests/again', 'file:///etc/passwd', 'http://']) {
      registry.first = (_, response) => {
        response.writeHead(302, { location }).end();
        return true;
      };
      t.is((await failure(take(registry.reference))).kind, 'unreachable', location);
    }
  });
});

test('an abort ends a download that waits, with its reason', async (t) => {
  await withRegistry(async (registry) => {
    registry.tag('latest', registry.image('amd64', [await pack(BIG)]));
    const abort = new AbortController();
    const source = await openRegistry(registry.reference, { ...OPTIONS, signal: abort.signal });
    registry.first = (_, response) => {
      response.writeHead(200, { 'content-length': 400_000 });
      response.flushHeaders();
      setTimeout(() => abort.abort(new FirstlightError('timeout', 'enough')), 10);
      return true;
    };
    const error = await failure(mergeImage(source, new MemorySink()));
    t.is(error.message, 'enough');
    await source.close();
  });
});

test('challenges: several schemes, quotes, blanks, nonsense', (t) => {
  const parse = (text: string | string[]) =>
    parseChallenges(text).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)]);
  t.deepEqual(
    parse('Bearer realm="https://a/t?x=1,2",service="s",scope="repository:a:pull,push"'),
    [['bearer', { realm: 'https://a/t?x=1,2', service: 's', scope: 'repository:a:pull,push' }]],
  );
  t.deepEqual(parse('Basic realm="a \\"b\\", c", charset=UTF-8, Bearer  Realm = x'), [
    ['basic', { realm: 'a "b", c', charset: 'UTF-8' }],
    ['bearer', { realm: 'x' }],
  ]);
  t.deepEqual(parse(['Negotiate', 'Basic realm=x']), [
    ['negotiate', {}],
    ['basic', { realm: 'x' }],
  ]);
  t.deepEqual(parse(''), []);
  t.deepEqual(parse('Bearer realm="open'), [['bearer', { realm: 'open' }]]);
  t.deepEqual(parse('"?'), []);
});
