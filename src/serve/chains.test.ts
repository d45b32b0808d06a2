// Images by a layer's chain id.
import { createHash } from 'node:crypto';
import test from 'ava';
import type { ChainImage, ImageDetail } from '../delta/protocol.ts';
import { chainIdsOf } from '../image/chain.ts';
import { addRootfs, ask, makeTar, serve } from './testkit.ts';

test('chain ids are those of the OCI image specification', (t) => {
  const digest = (text: string) => `sha256:${createHash('sha256').update(text).digest('hex')}`;
  t.deepEqual(chainIdsOf([]), []);
  t.deepEqual(chainIdsOf(['sha256:a']), ['sha256:a']);
  const second = digest('sha256:a sha256:b');
  t.deepEqual(chainIdsOf(['sha256:a', 'sha256:b', 'sha256:c']), [
    'sha256:a',
    second,
    digest(`${second} sha256:c`),
  ]);
});

test('an image is found by the chain id of its layer, until it is removed', async (t) => {
  const { url } = await serve(t);
  const tar = await makeTar({ 'etc/os': 'one' });
  await addRootfs(url, 'demo:1', tar);
  await addRootfs(url, 'other:1', await makeTar({ 'etc/os': 'two' }));
  const detail = (await ask(`${url}/v1/images/demo:1`)).json() as ImageDetail;
  const { diff_ids: diffIds } = (detail.config as { rootfs: { diff_ids: string[] } }).rootfs;
  const path = `${url}/v1/chains/${chainIdsOf(diffIds)[0]}`;
  const found = (await ask(path)).json() as ChainImage[];
  t.is(found.length, 1);
  t.like(found[0], { digest: detail.digest, name: 'demo:1', platform: 'linux/amd64', index: 0 });
  t.is(found[0]?.layers.length, 1);

  await ask(`${url}/v1/images/demo:1`, { method: 'DELETE' });
  t.deepEqual((await ask(path)).json(), []);
  t.deepEqual((await ask(`${url}/v1/chains/sha256:${'0'.repeat(64)}`)).json(), []);
  const bad = await ask(`${url}/v1/chains/redis:7`);
  t.is(bad.status, 400);
});
