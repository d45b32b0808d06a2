// hosts.toml as containerd documents it, and what is none.
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { parseHostsFile } from './hosts-file.ts';

const PATH = '/etc/containerd/certs.d/r.example/hosts.toml';
const parse = (text: string) => parseHostsFile(text, PATH);
const urls = (text: string) => parse(text).map(({ url }) => url?.href);

function complaint(text: string): FirstlightError {
  try {
    parse(text);
  } catch (error) {
    if (error instanceof FirstlightError) return error;
    throw error;
  }
  throw new Error(`was taken: ${text}`);
}

test('hosts are tried as they stand in the file, the server last', (t) => {
  const text = `
    server = "https://up.example"
    [host."https://z.example"]
    [host."http://a.example:5000/"]
    [host."m.example/cache/dir"]
    [host."https://p.example/root"]
      override_path = true
    [host."https://q.example"]
      override_path = true
    [host."https://v.example/x/v2"]`;
  t.deepEqual(urls(text), [
    'https://z.example/v2',
    'http://a.example:5000/v2',
    'https://m.example/cache/dir/v2',
    'https://p.example/root',
    'https://q.example/',
    'https://v.example/x/v2',
    'https://up.example/v2',
  ]);
  t.deepEqual(urls(''), [undefined]);
  t.deepEqual(urls('[host."https://m.example"]'), ['https://m.example/v2', undefined]);
  t.deepEqual(urls('server = "https://docker.io"'), ['https://registry-1.docker.io/v2']);
});

test('every field, of hosts and of the server', (t) => {
  const [mirror, server] = parse(`
    ca = "own.crt"
    skip_verify = false
    [host."https://m.example"]
      capabilities = ["pull"]
      ca = ["/a/one.crt", "two.crt"]
      client = [["c.cert", "c.key"], ["both.pem", ""], "alone.pem"]
      skip_verify = true
      dial_timeout = "1m1.5s"
      a-key-of-tomorrow = 1
      [host."https://m.example".header]
        x-one = "1"
        X-Two = ["2", "3"]`);
  t.like(mirror, { resolve: false, pull: true, skipVerify: true, dialTimeoutMs: 61_500 });
  const dir = '/etc/containerd/certs.d/r.example';
  t.deepEqual(mirror?.ca, ['/a/one.crt', `${dir}/two.crt`]);
  t.deepEqual(mirror?.client, [
    { certificate: `${dir}/c.cert`, key: `${dir}/c.key` },
    { certificate: `${dir}/both.pem`, key: `${dir}/both.pem` },
    { certificate: `${dir}/alone.pem`, key: `${dir}/alone.pem` },
  ]);
  t.deepEqual(mirror?.headers, [
    ['x-one', '1'],
    ['x-two', '2'],
    ['x-two', '3'],
  ]);
  t.like(server, { resolve: true, pull: true, skipVerify: false, url: undefined });
  t.deepEqual(server?.ca, [`${dir}/own.crt`]);
  t.deepEqual(parse('client = "x.pem"')[0]?.client, [
    { certificate: `${dir}/x.pem`, key: `${dir}/x.pem` },
  ]);
});

test('what is wrong is an error that names file and field, and repeats no value that may be secret', (t) => {
  const host = (line: string) => `[host."https://m.example"]\n${line}`;
  const wrong: [text: string, says: RegExp][] = [
    ['server = ', /line 1/],
    ['server = "a"\nserver = "b"', /line 2/],
    ['server = 1', /server must be a string/],
    ['host = 1', /host must be a table/],
    ['[host."https://m.example"]\n[host."https://m.example"]', /line 2/],
    [host('capabilities = "pull"'), /capabilities must be an array/],
    [host('capabilities = ["fly"]'), /capability 'fly'/],
    [host('ca = 1'), /ca must be/],
    [host('ca = [1]'), /ca.* must be/],
    [host('client = [["a"]]'), /client.* must be/],
    [host('client = [["a", "b", "c"]]'), /client.* must be/],
    [host('skip_verify = "no"'), /skip_verify must be true or false/],
    [host('dial_timeout = "soon"'), /dial_timeout 'soon'/],
    [host('header = "s3cret"'), /header must be a table/],
    [host('header = { a = "s3cret\\r\\nb: c" }'), /header 'a'/],
    [host('header = { "a b" = "s3cret" }'), /header 'a b'/],
    [host('header = { authorization = "s3cret }'), /line 2/],
    [host('header = { authorization = s3cret }'), /line 2/],
    ['[host."https://me:s3cret@m.example"]', /m\.example holds a login/],
    ['server = "https://me:s3cret@"', /no URL/],
    ['[host."ftp://m.example"]', /neither https nor http/],
    ['[host."https://"]', /no URL/],
    ['[host."https://me:s3cret@m.example"]\nca = 1', /a host's ca must be/],
    ['[host.""]', /no name/],
  ];
  for (const [text, says] of wrong) {
    const error = complaint(text);
    t.is(error.kind, 'usage', text);
    t.regex(error.line, says, text);
    t.true(error.line.includes(PATH), text);
    t.notRegex(error.line, /s3cret/, text);
  }
  t.is(complaint(host('proxy = "http://p.example:8080"')).kind, 'unsupported');
});
