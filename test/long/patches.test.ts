// The update of a real image by patches: redis on Debian 12 as released, and with its security and
// updates suites, in three layers (bench/images).
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import test from 'ava';
import type { ImageDetail } from '../../src/delta/protocol.ts';
import { Toc } from '../../src/delta/toc.ts';
import { REPOSITORY } from '../lib/images.ts';
import { must, until } from '../lib/proc.ts';
import { Stage } from '../lib/stage.ts';

const BUILD = join(REPOSITORY, 'bench/images/build.sh');

async function layout(version: 'old' | 'new'): Promise<string> {
  return (await must(BUILD, ['redis', version], { timeoutMs: 800_000 })).trim();
}

/** What a server's store has of an image. */
async function stored(stage: Stage, digest: string) {
  const directory = join(stage.data, 'images', digest.slice(7));
  return {
    toc: new Toc(await readFile(join(directory, 'toc'))),
    digests: await readFile(join(directory, 'contents')),
  };
}

/** Bytes of all contents that the new image has and the old one has not, each as gzip -9 has it. */
async function gzippedBytes(stage: Stage, old: string, now: string): Promise<number> {
  const [before, after] = [await stored(stage, old), await stored(stage, now)];
  const known = new Set<string>();
  for (let c = 0; c < before.toc.contents; c++)
    known.add(before.digests.toString('hex', c * 32, c * 32 + 32));
  let bytes = 0;
  for (let c = 0; c < after.toc.contents; c++) {
    const hex = after.digests.toString('hex', c * 32, c * 32 + 32);
    if (known.has(hex)) continue;
    const content = await readFile(join(stage.data, 'content', hex.slice(0, 2), hex.slice(2)));
    bytes += gzipSync(content, { level: 9 }).length;
  }
  return bytes;
}

test('a security update of redis by patches: bytes, contents and what runs', async (t) => {
  const [old, now] = [await layout('old'), await layout('new')];
  const stage = await Stage.open(t);
  await stage.serve();
  await stage.addImage(`oci:${old}:latest`, 'redis:old');
  const first = await stage.mount('redis:old', ['--wait']);
  await stage.must(['umount', first]);
  await stage.addImage(`oci:${now}:latest`, 'redis:new');
  const detail = await until(
    'the patches are ready',
    async () => {
      const found = await stage.json<ImageDetail>(['image', 'inspect', 'redis:new']);
      return found.patches.pending === 0 && found.patches.ready.length === 1 && found;
    },
    { timeoutMs: 600_000 },
  );
  const { from, bundleBytes } = detail.patches.ready[0]!;
  const url = `${stage.env.FIRSTLIGHT_SERVER}/v1/delta?image=redis:new&base=${from}`;
  const plainBytes = Number((await fetch(url, { method: 'HEAD' })).headers.get('content-length'));
  const gzipped = await gzippedBytes(stage, from, detail.digest);
  t.log(
    `${bundleBytes} bytes with patches, ${plainBytes} without, ${gzipped} as gzip -9 of each file`,
  );
  t.true(bundleBytes < plainBytes / 4);
  t.true(bundleBytes < gzipped / 4);
  const dir = await stage.mount('redis:new', ['--wait']);
  const { bytes, bytesDone, headerBytes } = await stage.mountStatus(dir);
  t.is(bytes + headerBytes, bundleBytes);
  t.is(bytesDone, bytes);
  const version = await must('chroot', [dir, '/usr/bin/redis-server', '--version']);
  t.regex(version, /^Redis server v=/);
  await stage.must(['umount', dir]);
  // Every content of the store against its digest: those that patches have made among them.
  await stage.must(['verify'], { timeoutMs: 120_000 });
});
