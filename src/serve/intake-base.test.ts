// An image that adds a layer to one of the server: only the new layer is sent.
import { gzipSync } from 'node:zlib';
import test, { type ExecutionContext } from 'ava';
import type { ErrorBody, ImageDetail, IntakeEvent } from '../delta/protocol.ts';
import { ask, makeTar, serve } from './testkit.ts';
import { layoutTar, type SmallImage, sha256, smallImage } from './testkit-images.ts';

const digestOf = (data: Buffer) => `sha256:${sha256(data)}`;

/** `base` with one more layer; of its blobs only the new ones. */
async function derive(base: SmallImage, files: Record<string, string>): Promise<SmallImage> {
  const tar = await makeTar(files);
  const layer = gzipSync(tar);
  const config = JSON.parse(base.config.toString()) as { rootfs: { diff_ids: string[] } };
  config.rootfs.diff_ids.push(digestOf(tar));
  const configBytes = Buffer.from(JSON.stringify(config));
  const manifest = JSON.parse(base.manifest.toString()) as {
    config: { digest: string; size: number };
    layers: { mediaType: string; digest: string; size: number }[];
  };
  manifest.config = { ...manifest.config, digest: digestOf(configBytes), size: configBytes.length };
  const { mediaType } = manifest.layers[0]!;
  manifest.layers.push({ mediaType, digest: digestOf(layer), size: layer.length });
  const bytes = Buffer.from(JSON.stringify(manifest));
  const blobs = new Map([configBytes, layer].map((data) => [sha256(data), data]));
  return { digest: digestOf(bytes), manifest: bytes, blobs, config: configBytes, tar };
}

async function world(t: ExecutionContext) {
  const { url } = await serve(t);
  const base = await smallImage({ 'etc/a': 'aaaa', 'etc/b': 'bb', 'bin/x': 'xxx' });
  const add = (body: Buffer, query: string) =>
    ask(`${url}/v1/images?platform=linux/amd64&${query}`, { method: 'POST', body });
  await add(await layoutTar(base, 'app:1'), 'kind=oci');
  const inspect = async (name: string) =>
    (await ask(`${url}/v1/images/${name}`)).json() as ImageDetail;
  return { url, base, add, inspect };
}

function lastOf(body: Buffer): IntakeEvent {
  return JSON.parse(body.toString().trimEnd().split('\n').at(-1)!) as IntakeEvent;
}

test('a layer over an image of the server makes the tree of both', async (t) => {
  const { base, add, inspect } = await world(t);
  const next = await derive(base, { 'etc/.wh.b': '', 'etc/c': 'cc', 'bin/x': 'changed' });
  const sent = await add(await layoutTar(next, 'app:2'), `kind=oci&base=${base.digest}`);
  const last = lastOf(sent.body);
  t.is(last.event, 'done', sent.body.toString());
  const image = await inspect('app:2');
  t.is(image.digest, next.digest);
  t.is(image.layers, 2);
  // The root, bin, bin/x, etc, etc/a, etc/c.
  t.is(image.entries, 6);
  t.is(image.bytes, 'changed'.length + 'aaaa'.length + 'cc'.length);
  // The same, sent whole, is known: it is the same image.
  const blobs = new Map([...base.blobs, ...next.blobs]);
  const whole = await add(await layoutTar({ ...next, blobs }, 'app:3'), 'kind=oci');
  t.is(lastOf(whole.body).event, 'done');
  t.is((await inspect('app:3')).digest, next.digest);
  t.is((await inspect('app:1')).entries, 6, 'the old image is what it was');
});

test('a base that is not there, or is another image, is refused and leaves nothing', async (t) => {
  const { base, add, inspect } = await world(t);
  const next = await derive(base, { 'etc/c': 'cc' });
  const body = await layoutTar(next, 'app:2');
  const kindAfter = async (query: string, sent = body) => {
    const answer = await add(sent, query);
    const last = lastOf(answer.body) as Partial<IntakeEvent> & Partial<ErrorBody>;
    return last.error?.kind;
  };
  t.is(await kindAfter(`kind=oci&base=sha256:${'0'.repeat(64)}`), 'not-found');
  const other = await smallImage({ 'etc/z': 'z' });
  await add(await layoutTar(other, 'other:1'), 'kind=oci');
  t.is(await kindAfter(`kind=oci&base=${other.digest}`), 'usage');
  t.is(await kindAfter('kind=oci&base=app:1'), 'usage');
  t.is(await kindAfter(`kind=rootfs&name=x:1&base=${base.digest}`, base.tar), 'usage');
  // It has no layer of the base at all.
  const third = await layoutTar(await smallImage({ 'etc/q': 'q' }), 'a:1');
  t.is(await kindAfter(`kind=oci&base=${base.digest}`, third), 'usage');
  // Without the base's blobs, and without naming it.
  t.is(await kindAfter('kind=oci'), 'not-found');
  t.is((await inspect('app:2')).digest, undefined as never);
});
