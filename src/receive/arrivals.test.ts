// Parts of large contents whose digests disagree: no test server writes such a bundle, so the parts are
// handed over here.
import test from 'ava';
import {
  makeImage,
  noise,
  quietLog,
  scratch,
  sha256,
  WatchingTemplate,
} from '../../test/receive/fixture.ts';
import type { DecodedPart } from '../delta/bundle.ts';
import { PART_BYTES } from '../delta/toc-layout.ts';
import { CONTENT_STATE } from '../native/index.ts';
import { LayerStore } from '../store/layer-store.ts';
import { Template } from '../tree/template.ts';
import { Arrivals, WrongContentError } from './arrivals.ts';

test('parts that name two digests for one content are forgotten, and the right ones are taken after', async (t) => {
  const data = noise('large', 2 * PART_BYTES + 5);
  const image = makeImage('two digests', { large: data });
  const { log } = quietLog();
  const store = await LayerStore.open(await scratch(t), { log });
  const stored = await store.registerImage({
    digest: image.digest,
    manifest: image.manifest,
    config: image.config,
    toc: image.toc.bytes,
    contents: image.toc.contents,
    parts: image.toc.parts,
    digests: Buffer.alloc(image.toc.contents * 32),
    frames: Buffer.from('frames'),
    state: {
      version: 1,
      name: 'app:1',
      platform: 'linux/amd64',
      server: 'http://127.0.0.1:1',
      bundlePath: '/v1/bundles/x',
      etag: '"x"',
      complete: false,
    },
  });
  let watched: WatchingTemplate | undefined;
  const template = Template.open(store, stored, image.toc, (options) => {
    watched = new WatchingTemplate(options);
    return watched;
  });
  const arrivals = await Arrivals.open(store, stored, template);
  const part = (index: number, contentDigest: Buffer): DecodedPart => {
    const bytes = data.subarray(index * PART_BYTES, (index + 1) * PART_BYTES);
    const partDigest = Buffer.from(sha256(bytes), 'hex');
    return { part: index, content: 0, index, data: bytes, partDigest, contentDigest };
  };
  const right = Buffer.from(sha256(data), 'hex');
  await arrivals.store([part(0, Buffer.alloc(32, 7))]);
  t.true(arrivals.hasPart(0));
  await t.throwsAsync(arrivals.store([part(1, right)]), { instanceOf: WrongContentError });
  t.false(arrivals.hasPart(0));
  t.is(watched?.state(0), CONTENT_STATE.Failed);
  t.is(watched?.arrivedParts.size, 0, 'else they would be read as holes of the next file');
  await arrivals.store([part(0, right), part(1, right), part(2, right)]);
  t.true(arrivals.isReady(0));
  t.deepEqual(watched?.violations, []);
  t.true(watched?.read(0).equals(data));
  await arrivals.close();
  template.release();
  await store.close();
});
