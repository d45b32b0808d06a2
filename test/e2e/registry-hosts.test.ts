// Registries as containerd's users have them: Debian's docker-registry behind TLS with an authority of its own, a
// mirror that lacks the image, a password, client certificates. The same directories are read by Debian's containerd.
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import {
  appImages,
  Containerd,
  push,
  startRegistry as startPlainRegistry,
} from '../lib/containerd.ts';
import { freePort } from '../lib/ports.ts';
import { Background, must, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

const LOGIN = { name: 'worker', password: 'pass:w0rd-of-the-test' };

/** An authority and what it has signed, made by openssl. */
class Authority {
  readonly dir: string;
  readonly certificate: string;

  private constructor(dir: string) {
    this.dir = dir;
    this.certificate = join(dir, 'ca.crt');
  }

  static async make(stage: Stage, name: string): Promise<Authority> {
    const authority = new Authority(join(stage.dir, name));
    await mkdir(authority.dir);
    await authority.#openssl(
      'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2',
      `-subj /CN=${name} -keyout ca.key -out ca.crt`,
    );
    return authority;
  }

  async #openssl(...words: string[]): Promise<void> {
    await must('openssl', words.join(' ').split(' '), { cwd: this.dir });
  }

  /** Signs a certificate for 127.0.0.1, of servers and clients; the paths of it and its key. */
  async sign(name: string): Promise<{ certificate: string; key: string }> {
    await writeFile(join(this.dir, 'ext'), 'subjectAltName=IP:127.0.0.1\n');
    await this.#openssl(
      'req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes',
      `-subj /CN=${name} -keyout ${name}.key -out ${name}.csr`,
    );
    await this.#openssl(
      `x509 -req -in ${name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2`,
      `-extfile ext -out ${name}.crt`,
    );
    return { certificate: join(this.dir, `${name}.crt`), key: join(this.dir, `${name}.key`) };
  }
}

interface Registry {
  host: string;
  process: Background;
  /** Requests that it has logged. */
  requests(): string[];
}

/** docker-registry behind TLS, on the data of `name`. */
async function startRegistry(
  stage: Stage,
  name: string,
  authority: Authority,
  options: { password?: boolean; clients?: boolean } = {},
): Promise<Registry> {
  const host = `127.0.0.1:${await freePort()}`;
  const { certificate, key } = await authority.sign(`server-${host.replace(/\D/g, '-')}`);
  const clients = options.clients === true ? `, clientcas: ["${authority.certificate}"]` : '';
  let auth = '';
  if (options.password === true) {
    const path = join(stage.dir, 'htpasswd');
    await writeFile(path, await must('htpasswd', ['-Bbn', LOGIN.name, LOGIN.password]));
    auth = `auth: {htpasswd: {realm: test, path: "${path}"}}`;
  }
  const config = join(stage.dir, `registry-${host}.yml`);
  await writeFile(
    config,
    `version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: "${join(stage.dir, name)}"}
http: {addr: "${host}", tls: {certificate: "${certificate}", key: "${key}"${clients}}}
${auth}
`,
  );
  const process = new Background('docker-registry', ['serve', config], { env: stage.env });
  stage.onClose(async () => {
    await process.kill('SIGTERM');
  });
  // It says nothing when it listens, and not all of them let this test in.
  const probe = ['-sk', '-o', '/dev/null', '-w', '%{errormsg}', `https://${host}/v2/`];
  await until('the registry answers', async () => {
    if (!process.running) throw new Error(`docker-registry ended: ${process.stderr}`);
    const said = await must('sh', ['-c', 'curl "$@" || true', 'sh', ...probe]);
    return !/connect to|refused/i.test(said);
  });
  const requests = () =>
    process.stdout.split('\n').filter((line) => line.includes('GET /v2/team/'));
  return { host, process, requests };
}

/** An image of a few bytes, as `team/app:1` in the data of `origin`. */
async function pushImage(stage: Stage): Promise<void> {
  const layout = join(stage.dir, 'layout');
  const file = join(stage.dir, 'file');
  await writeFile(file, 'from the registry\n');
  await must('umoci', ['init', '--layout', layout]);
  await must('umoci', ['new', '--image', `${layout}:app`]);
  await must('umoci', ['insert', '--image', `${layout}:app`, file, '/file']);
  const host = `127.0.0.1:${await freePort()}`;
  const config = join(stage.dir, 'push.yml');
  await writeFile(
    config,
    `version: 0.1
storage: {filesystem: {rootdirectory: "${join(stage.dir, 'origin')}"}}
http: {addr: "${host}"}
`,
  );
  const plain = new Background('docker-registry', ['serve', config], { env: stage.env });
  try {
    await until('the registry answers', () =>
      fetch(`http://${host}/v2/`).then(
        () => true,
        () => false,
      ),
    );
    const args = ['copy', '-q', '--insecure-policy', '--dest-tls-verify=false'];
    await must('skopeo', [...args, `oci:${layout}:app`, `docker://${host}/team/app:1`]);
  } finally {
    await plain.kill('SIGTERM');
  }
}

/** Writes docker's config.json with the login for a host; the login as it stands there. */
async function writeLogin(stage: Stage, host: string): Promise<string> {
  const auth = Buffer.from(`${LOGIN.name}:${LOGIN.password}`).toString('base64');
  await mkdir(join(stage.dir, 'docker'));
  const config = JSON.stringify({ auths: { [host]: { auth } } });
  await writeFile(join(stage.dir, 'docker/config.json'), config);
  return auth;
}

interface World {
  stage: Stage;
  authority: Authority;
  certs: string;
  /** Writes a file of a registry's directory. */
  put(host: string, name: string, text: string): Promise<void>;
}

async function open(t: ExecutionContext): Promise<World> {
  const stage = await Stage.open(t);
  const certs = join(stage.dir, 'certs.d');
  stage.env.FIRSTLIGHT_HOSTS_DIR = `${join(stage.dir, 'absent')}:${certs}`;
  stage.env.DOCKER_CONFIG = join(stage.dir, 'docker');
  await pushImage(stage);
  return {
    ...{ stage, certs },
    authority: await Authority.make(stage, 'authority'),
    async put(host, name, text) {
      await mkdir(join(certs, host), { recursive: true });
      await writeFile(join(certs, host, name), text);
    },
  };
}

test.serial(
  'TLS by an authority in hosts.toml, a mirror that lacks the image, a password that the mirror never sees',
  async (t) => {
    const { stage, authority, certs, put } = await open(t);
    const origin = await startRegistry(stage, 'origin', authority, { password: true });
    const mirror = await startRegistry(stage, 'empty', await Authority.make(stage, 'other'));
    // It has the image, and wants the same password: a login that went astray would be let in.
    const locked = await startRegistry(stage, 'origin', authority, { password: true });
    await must('cp', [join(stage.dir, 'other/ca.crt'), join(stage.dir, 'mirror.crt')]);
    const hosts = (ca: string) => `
server = "https://${origin.host}"
ca = "${ca}"
[host."https://${mirror.host}"]
  capabilities = ["pull", "resolve"]
  ca = "${join(stage.dir, 'mirror.crt')}"
[host."https://${locked.host}"]
  ca = ["${authority.certificate}"]
`;
    await put(origin.host, 'hosts.toml', hosts(authority.certificate));
    const auth = await writeLogin(stage, origin.host);
    const server = await stage.serve();
    const source = `docker://${origin.host}/team/app:1`;
    await stage.addImage(source, 'app:1');
    t.true(
      mirror.requests().some((line) => line.includes(`ns=${encodeURIComponent(origin.host)}`)),
    );
    t.true(origin.requests().some((line) => line.includes('/blobs/')));
    t.regex(server.process.stderr + server.process.stdout, /another host is asked/);
    t.true(locked.requests().length > 0);
    t.deepEqual(
      locked.requests().filter((line) => !line.includes('" 401 ')),
      [],
    );
    const secrets = new RegExp(`${LOGIN.password}|${auth}`);
    t.notRegex(server.process.stderr + server.process.stdout, secrets);

    // containerd reads the same directory the same way, but that ctr gives the login to every host that asks.
    const containerd = await Containerd.start(stage, join(stage.dir, 'none.sock'), {
      snapshotter: 'native',
    });
    const user = ['--user', `${LOGIN.name}:${LOGIN.password}`];
    const reference = `${origin.host}/team/app:1`;
    const before = locked.requests().length;
    await containerd.ctr(['content', 'fetch', '--hosts-dir', certs, ...user, reference]);
    t.true(locked.requests().length > before);
    t.regex(
      mirror.process.stdout,
      /"(GET|HEAD) \/v2\/team\/app\/manifests\/1\?ns=[^"]*" 404 .*containerd/,
    );

    // Another authority: no connection, and what to do.
    await put(origin.host, 'hosts.toml', hosts(join(stage.dir, 'mirror.crt')));
    const failed = await stage.run(['image', 'add', source, '--name', 'app:2']);
    t.is(failed.code, 4);
    t.regex(failed.stderr, /no trusted connection to .*nobody here trusts .*certs\.d.*ca\.crt/);
    t.notRegex(failed.stderr + server.process.stderr, secrets);
  },
);

test.serial(
  "the snapshotter reads shared layers where hosts.toml says, with docker's login for that host",
  async (t) => {
    const stage = await Stage.open(t);
    const authority = await Authority.make(stage, 'authority');
    const images = await appImages(stage.dir);
    const plain = await startPlainRegistry(stage);
    for (const tag of ['v1', 'other']) await push(images.layout, tag, `${plain}/team/app:${tag}`);
    await stage.serve();
    await stage.must(['image', 'add', `docker://${plain}/team/app:v1`]);
    // The same images by TLS and with a password. containerd itself goes on pulling from the plain one.
    const locked = await startRegistry(stage, 'registry', authority, { password: true });
    const certs = join(stage.dir, 'certs.d');
    await mkdir(join(certs, plain), { recursive: true });
    await writeFile(
      join(certs, plain, 'hosts.toml'),
      `server = "https://${locked.host}"\nca = "${authority.certificate}"\n`,
    );
    await writeLogin(stage, locked.host);
    const socket = join(stage.dir, 's.sock');
    const daemon = stage.start(
      ['daemon', '--snapshotter', socket, '--prepare-timeout', '280s', '--hosts-dir', certs],
      { env: { DOCKER_CONFIG: join(stage.dir, 'docker') } },
    );
    await until('the daemon is ready', () => {
      if (!daemon.running) throw new Error(`the daemon ended: ${daemon.stderr}`);
      return daemon.stderr.includes('is ready');
    });
    const containerd = await Containerd.start(stage, socket);
    await containerd.pull(`${plain}/team/app:v1`);
    await containerd.pull(`${plain}/team/app:other`);
    const said = await containerd.run(`${plain}/team/app:other`, 'c1', ['cat', '/other/file']);
    t.is(said, 'other\n');
    t.true(locked.requests().some((line) => line.includes('/blobs/') && line.includes('" 200 ')));
    t.notRegex(daemon.stderr, new RegExp(LOGIN.password));
  },
);

test.serial(
  "client certificates in docker's directory: for the machine's own pulls, lent to clients only where told",
  async (t) => {
    const { stage, authority, put } = await open(t);
    const { host } = await startRegistry(stage, 'origin', authority, { clients: true });
    const client = await authority.sign('client');
    await put(host, 'ca.crt', await readFile(authority.certificate, 'utf8'));
    const source = `docker://${host}/team/app:1`;
    const local = ['image', 'add', source, '--name', 'app:1', '--data', stage.data];
    t.is((await stage.run(local)).code, 4);
    await put(host, 'client.cert', await readFile(client.certificate, 'utf8'));
    await put(host, 'client.key', await readFile(client.key, 'utf8'));
    await stage.must(local);
    await stage.must(['image', 'rm', 'app:1', '--data', stage.data]);

    const remote = ['image', 'add', source, '--name', 'app:1'];
    const alone = await stage.serve();
    t.is((await stage.run(remote)).code, 4);
    await alone.process.kill('SIGTERM');
    stage.env.FIRSTLIGHT_REGISTRY_LOGIN = 'true';
    await stage.serve();
    await stage.must(remote);
  },
);
