// Intake from Debian's docker-registry on the loopback address: open, with a password, and with
// bearer tokens. umoci builds the images, skopeo brings them in; what comes out is compared with
// what umoci unpacks.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createHash, createPrivateKey, createSign, generateKeyPairSync } from 'node:crypto';
import { createReadStream } from 'node:fs';
import {
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  writeFile,
} from 'node:fs/promises';
import { createServer as createHttp, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { promisify } from 'node:util';
import test from 'ava';
import { mergeImage } from '../../src/image/merge.ts';
import { openOciLayout } from '../../src/image/oci-layout.ts';
import { openRegistry, type RegistryOptions } from '../../src/image/registry.ts';
import type { ContentSink } from '../../src/image/source.ts';
import { failure } from '../../src/image/testkit-registry.ts';
import { S_IF, type TreeNode } from '../../src/image/tree.ts';
import { freePort } from '../lib/ports.ts';
import { until } from '../lib/proc.ts';

const run = promisify(execFile);
const PLATFORM = 'linux/amd64';

let dir = '';
const running: { child: ChildProcess; exited: Promise<unknown> }[] = [];
const servers: Server[] = [];

/** Starts a registry over the data of `name`; gives its `host:port`. */
async function startRegistry(name: string, auth = ''): Promise<string> {
  const port = await freePort();
  const config = join(dir, `${name}-${port}.yml`);
  await writeFile(
    config,
    `version: 0.1
log: {level: error}
storage:
  filesystem: {rootdirectory: ${join(dir, name)}}
http: {addr: "127.0.0.1:${port}"}
${auth}`,
  );
  const child = spawn('docker-registry', ['serve', config], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let said = '';
  child.stderr!.on('data', (chunk) => {
    said += chunk;
  });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  running.push({ child, exited });
  const host = `127.0.0.1:${port}`;
  await until('docker-registry answers', async () => {
    if (child.exitCode !== null) throw new Error(`docker-registry ended: ${said}`);
    return fetch(`http://${host}/v2/`).then(
      () => true,
      () => false,
    );
  });
  return host;
}

/** Builds an OCI layout with the tag `app` (three layers) and says where it is. */
async function buildLayout(): Promise<string> {
  const layout = join(dir, 'layout');
  const bundle = join(dir, 'bundle');
  const image = `${layout}:app`;
  await run('umoci', ['init', '--layout', layout]);
  await run('umoci', ['new', '--image', image]);
  await run('umoci', ['config', '--image', image, '--architecture', 'amd64', '--os', 'linux']);
  const layers = [
    `mkdir -p etc usr/lib var/cache/old opaque/below tmp; chmod 1777 tmp
     echo one >etc/one; echo two >etc/two; ln etc/two etc/two-again; ln -s usr/lib lib
     head -c 24000000 /dev/urandom >usr/lib/big; echo x >var/cache/old/f; echo y >opaque/below/f
     touch -d '2001-02-03 04:05:06.789' etc/one; mkfifo pipe; install -m 4755 /dev/null su
     chown 1000:1001 etc/one; : >empty`,
    `rm etc/one; rm -r var/cache/old opaque; mkdir opaque; echo new >opaque/new
     ln etc/two etc/two-third; rm lib; mkdir lib; echo real >lib/real`,
    `echo changed >etc/two; chmod 700 var; rm pipe; echo file >pipe`,
  ];
  for (const script of layers) {
    await run('umoci', ['unpack', '--image', image, bundle]);
    await run('sh', ['-euc', script], { cwd: join(bundle, 'rootfs') });
    await run('umoci', ['repack', '--image', image, bundle]);
    await rm(bundle, { recursive: true });
  }
  return layout;
}

/** Makes an index of the amd64 image and one for arm64 under the tag `multi`. */
async function addIndex(layout: string): Promise<void> {
  const arm = `${layout}:arm`;
  await run('umoci', ['new', '--image', arm]);
  await run('umoci', ['config', '--image', arm, '--architecture', 'arm64', '--os', 'linux']);
  await writeFile(join(dir, 'arm-file'), 'for arm64');
  await run('umoci', ['insert', '--image', arm, join(dir, 'arm-file'), '/is-arm64']);
  const path = join(layout, 'index.json');
  const index = JSON.parse(await readFile(path, 'utf8'));
  const find = (tag: string) => {
    const entry = index.manifests.find(
      (each: { annotations?: Record<string, string> }) =>
        each.annotations?.['org.opencontainers.image.ref.name'] === tag,
    );
    return { mediaType: entry.mediaType, digest: entry.digest, size: entry.size };
  };
  const multi = {
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: [
      { ...find('arm'), platform: { os: 'linux', architecture: 'arm64' } },
      { ...find('app'), platform: { os: 'linux', architecture: 'amd64' } },
    ],
  };
  const bytes = Buffer.from(JSON.stringify(multi));
  const hex = createHash('sha256').update(bytes).digest('hex');
  await writeFile(join(layout, 'blobs', 'sha256', hex), bytes);
  index.manifests.push({
    mediaType: multi.mediaType,
    digest: `sha256:${hex}`,
    size: bytes.length,
    annotations: { 'org.opencontainers.image.ref.name': 'multi' },
  });
  await writeFile(path, JSON.stringify(index));
}

const LOGIN = { username: 'worker', password: 'pass:word' };
let layout = '';
let open = '';

test.before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'firstlight-registry-'));
  layout = await buildLayout();
  await addIndex(layout);
  open = await startRegistry('data');
  const skopeo = (from: string, to: string, ...more: string[]) =>
    run('skopeo', [
      '--insecure-policy',
      'copy',
      '-q',
      '--dest-tls-verify=false',
      ...more,
      from,
      to,
    ]);
  const copy = (from: string, to: string, ...more: string[]) =>
    skopeo(`oci:${layout}:${from}`, `docker://${open}/${to}`, ...more);
  // skopeo compresses anew only what it reads uncompressed, and then takes the gzip blobs that it
  // remembers of the registry; by another name it remembers none.
  const plain = `dir:${join(dir, 'plain')}`;
  await skopeo(`oci:${layout}:app`, plain, '--dest-decompress');
  const other = open.replace('127.0.0.1', 'localhost');
  await skopeo(plain, `docker://${other}/team/app:zstd`, '--dest-compress-format', 'zstd');
  await copy('app', 'team/app:gzip');
  await copy('app', 'team/app:docker', '--format', 'v2s2');
  await copy('multi', 'team/multi:1', '--all');
});

test.after.always(async () => {
  for (const { child, exited } of running) {
    child.kill();
    await exited;
  }
  for (const server of servers) server.close();
  if (dir !== '') await rm(dir, { recursive: true, force: true });
});

/** Hashes contents and keeps nothing. */
const hashSink: ContentSink = {
  async put(content: Readable) {
    const hash = createHash('sha256');
    for await (const chunk of content) hash.update(chunk as Buffer);
    return hash.digest('hex');
  },
};

type Lines = Map<string, string>;

/** A tree as lines of attributes by path, with hard-link groups named by their first path. */
function linesOf(root: TreeNode): Lines {
  const found: Lines = new Map();
  const groups = new Map<unknown, string>();
  const walk = (node: TreeNode, path: string) => {
    const { inode } = node;
    if (!groups.has(inode)) groups.set(inode, path);
    const fields = [
      (S_IF[inode.type] | inode.mode).toString(8),
      inode.uid,
      inode.gid,
      `${inode.mtimeSec}.${String(inode.mtimeNsec).padStart(9, '0')}`,
      inode.type === 'file' ? inode.size : '',
      inode.type === 'file' && inode.size > 0 ? inode.digest : (inode.target ?? ''),
      inode.type === 'dir' ? '' : groups.get(inode),
    ];
    found.set(path, fields.join(' '));
    const names = [...(node.children?.keys() ?? [])].sort();
    for (const name of names) walk(node.children!.get(name)!, `${path}/${name}`);
  };
  walk(root, '');
  return found;
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

/** The same lines of a directory on disk. */
async function linesOfDisk(root: string): Promise<Lines> {
  const found: Lines = new Map();
  const groups = new Map<bigint, string>();
  const walk = async (path: string) => {
    const full = join(root, path);
    const stat = await lstat(full, { bigint: true });
    if (!groups.has(stat.ino)) groups.set(stat.ino, path);
    const seconds = stat.mtimeNs / 1_000_000_000n;
    let content = '';
    if (stat.isSymbolicLink()) content = await readlink(full);
    else if (stat.isFile() && stat.size > 0n) content = await sha256(full);
    const fields = [
      stat.mode.toString(8),
      stat.uid,
      stat.gid,
      `${seconds}.${String(stat.mtimeNs % 1_000_000_000n).padStart(9, '0')}`,
      stat.isFile() ? stat.size : '',
      content,
      stat.isDirectory() ? '' : groups.get(stat.ino),
    ];
    found.set(path, fields.join(' '));
    if (!stat.isDirectory()) return;
    for (const name of (await readdir(full)).sort()) await walk(`${path}/${name}`);
  };
  await walk('');
  return found;
}

async function take(reference: string, options: Partial<RegistryOptions> = {}) {
  const source = await openRegistry(reference, { platform: PLATFORM, auth: null, ...options });
  try {
    const { root } = await mergeImage(source, hashSink);
    return { source, lines: linesOf(root), root };
  } finally {
    await source.close();
  }
}

test.serial('gzip, zstd and docker manifests give the tree that umoci unpacks', async (t) => {
  const bundle = join(dir, 'unpacked');
  await run('umoci', ['unpack', '--image', `${layout}:app`, bundle]);
  const wanted = await linesOfDisk(join(bundle, 'rootfs'));
  t.true(wanted.size > 15);
  for (const tag of ['gzip', 'zstd', 'docker']) {
    const { source, lines } = await take(`${open}/team/app:${tag}`);
    t.deepEqual([...lines].sort(), [...wanted].sort(), tag);
    const types = source.layers.map(({ mediaType }) => mediaType).join();
    const expected = { gzip: /oci.*\+gzip/, zstd: /oci.*\+zstd/, docker: /docker.*\.gzip/ }[tag]!;
    t.regex(types, expected);
    const { stdout } = await run('skopeo', [
      'inspect',
      '--tls-verify=false',
      '--format',
      '{{.Digest}}',
      `docker://${open}/team/app:${tag}`,
    ]);
    t.is(source.digest, stdout.trim());
  }
  const local = await openOciLayout(layout, 'app', { platform: PLATFORM });
  const { root } = await mergeImage(local, hashSink);
  t.deepEqual([...linesOf(root)].sort(), [...wanted].sort());
});

test.serial('an index gives the image of the wanted platform, by tag and by digest', async (t) => {
  const reference = `${open}/team/multi`;
  t.true((await take(`${reference}:1`)).lines.has('/etc/two'));
  const arm = await take(`${reference}:1`, { platform: 'linux/arm64' });
  t.true(arm.lines.has('/is-arm64'));
  t.is(arm.source.platform, 'linux/arm64');
  const byDigest = await take(`${reference}@${arm.source.digest}`, { platform: 'linux/arm64' });
  t.is(byDigest.source.digest, arm.source.digest);
  const error = await failure(take(`${reference}:1`, { platform: 'linux/ppc64le' }));
  t.is(error.kind, 'platform');
  t.regex(error.line, /linux\/arm64, linux\/amd64/);
});

test.serial('a wrong tag and a wrong repository are told apart', async (t) => {
  const tag = await failure(take(`${open}/team/app:none`));
  t.is(tag.kind, 'not-found');
  t.regex(tag.line, /team\/app:none/);
  const repository = await failure(take(`${open}/team/none:1`));
  t.is(repository.kind, 'not-found');
});

test.serial(
  'a password: from docker config.json and given; wrong and missing ones are refused',
  async (t) => {
    const { stdout } = await run('htpasswd', ['-Bbn', LOGIN.username, LOGIN.password]);
    await writeFile(join(dir, 'htpasswd'), stdout);
    const auth = `auth: {htpasswd: {realm: "test registry", path: ${join(dir, 'htpasswd')}}}\n`;
    const host = await startRegistry('data', auth);
    const reference = `${host}/team/app:gzip`;
    t.true((await take(reference, { auth: LOGIN })).lines.has('/etc/two'));
    const wrong = await failure(take(reference, { auth: { ...LOGIN, password: 'x' } }));
    t.is(wrong.kind, 'unauthorized');
    const before = process.env.DOCKER_CONFIG;
    process.env.DOCKER_CONFIG = join(dir, 'docker');
    try {
      await mkdir(process.env.DOCKER_CONFIG, { recursive: true });
      const none = await failure(take(reference, { auth: undefined }));
      t.is(none.kind, 'unauthorized');
      t.regex(none.line, new RegExp(`docker login ${host}`));
      // The login is written by skopeo, not by us.
      const file = join(process.env.DOCKER_CONFIG, 'config.json');
      await run('skopeo', [
        'login',
        '--authfile',
        file,
        '--tls-verify=false',
        '-u',
        LOGIN.username,
        '-p',
        LOGIN.password,
        host,
      ]);
      t.true((await take(reference, { auth: undefined })).lines.has('/etc/two'));
    } finally {
      if (before === undefined) delete process.env.DOCKER_CONFIG;
      else process.env.DOCKER_CONFIG = before;
    }
  },
);

/** A token server for the registry, signing with a key whose certificate the registry trusts. */
async function startTokenServer(): Promise<{ url: string; certificate: string; asked: string[] }> {
  const key = join(dir, 'token.key');
  const certificate = join(dir, 'token.crt');
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  await writeFile(key, privateKey.export({ type: 'pkcs8', format: 'pem' }));
  await run('openssl', [
    'req',
    '-x509',
    '-new',
    '-key',
    key,
    '-subj',
    '/CN=token',
    '-days',
    '2',
    '-out',
    certificate,
  ]);
  const der = Buffer.from(
    (await readFile(certificate, 'utf8')).replace(/-----[A-Z ]+-----|\s/g, ''),
    'base64',
  );
  const sign = (claims: object) => {
    const part = (json: object) => Buffer.from(JSON.stringify(json)).toString('base64url');
    const text = `${part({ typ: 'JWT', alg: 'RS256', x5c: [der.toString('base64')] })}.${part(claims)}`;
    const signature = createSign('RSA-SHA256')
      .update(text)
      .sign(createPrivateKey(privateKey.export({ type: 'pkcs8', format: 'pem' })));
    return `${text}.${signature.toString('base64url')}`;
  };
  const asked: string[] = [];
  const server = createHttp((request, response) => {
    const url = new URL(request.url!, 'http://x');
    asked.push(url.search);
    const basic = `Basic ${btoa(`${LOGIN.username}:${LOGIN.password}`)}`;
    if (request.headers.authorization !== basic) {
      response.writeHead(401).end();
      return;
    }
    const [type, name, actions] = (url.searchParams.get('scope') ?? '').split(':');
    const now = Math.floor(Date.now() / 1000);
    const access = [{ type, name, actions: actions?.split(',') }];
    const token = sign({
      iss: 'token',
      sub: 'x',
      aud: 'reg',
      exp: now + 3600,
      nbf: now - 60,
      iat: now,
      jti: String(now),
      access,
    });
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ token }));
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/token`,
    certificate,
    asked,
  };
}

test.serial(
  'bearer tokens: the scope is asked for with the login, and the registry takes the token',
  async (t) => {
    const { url, certificate, asked } = await startTokenServer();
    const auth = `auth: {token: {realm: "${url}", service: reg, issuer: token, rootcertbundle: ${certificate}}}\n`;
    const host = await startRegistry('data', auth);
    const reference = `${host}/team/app:gzip`;
    t.true((await take(reference, { auth: LOGIN })).lines.has('/etc/two'));
    t.deepEqual([...new Set(asked)], ['?service=reg&scope=repository%3Ateam%2Fapp%3Apull']);
    const wrong = await failure(take(reference, { auth: { ...LOGIN, password: 'x' } }));
    t.is(wrong.kind, 'unauthorized');
    t.is((await failure(take(reference))).kind, 'unauthorized');
  },
);

test.serial(
  'a registry that goes down and comes back in the middle of a layer costs a pause, no error',
  async (t) => {
    const host = await startRegistry('data');
    const { child, exited } = running.at(-1)!;
    // It is tried a few times, with longer and longer pauses: a minute and a half in all.
    const patient = { platform: PLATFORM, auth: null, retryDelayMs: 3000 };
    const source = await openRegistry(`${host}/team/app:gzip`, patient);
    // The file is larger than what the sockets' buffers may hold when the registry dies.
    let restarted = false;
    const { root } = await mergeImage(source, {
      async put(content, bytes) {
        if (!restarted && bytes > 1 << 20) {
          restarted = true;
          child.kill('SIGKILL');
          await exited;
          const config = child.spawnargs.at(-1)!;
          setTimeout(() => {
            const again = spawn('docker-registry', ['serve', config], { stdio: 'ignore' });
            running.push({
              child: again,
              exited: new Promise((resolve) => again.once('exit', resolve)),
            });
          }, 300);
        }
        return hashSink.put(content, bytes);
      },
    });
    await source.close();
    t.true(restarted);
    t.true(linesOf(root).has('/usr/lib/big'));
  },
);
