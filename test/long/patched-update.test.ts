// An update by patches, from the command that adds the new version to the bytes that a container
// reads: in the order of a trace, by what readers wait for, and with an old image that is damaged.
import { createHash } from 'node:crypto';
import { chmod, open } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { ImageDetail } from '../../src/delta/protocol.ts';
import { must, until } from '../lib/proc.ts';
import { type SmallImage, smallImage } from '../lib/small-image.ts';
import { Stage } from '../lib/stage.ts';

/** Bytes that the new version's changed files have. */
const CHANGED_BYTES = 13_000_000;

async function sha256(path: string): Promise<string> {
  return (await must('sha256sum', [path])).slice(0, 64);
}

/** Bytes of bundles that the server has sent, whatever the worker made of them. */
async function sentBytes(stage: Stage): Promise<number> {
  const answer = await fetch(`${stage.env.FIRSTLIGHT_SERVER}/metrics`);
  const line = /^firstlight_bundle_sent_bytes_total (.*)$/m.exec(await answer.text());
  return Number(line![1]);
}

/** A worker with version 1, complete, and a server with both, whose patches are ready. */
async function updated(
  t: ExecutionContext,
): Promise<{ stage: Stage; image: SmallImage; plainBytes: number; expected: Map<string, string> }> {
  const stage = await Stage.open(t);
  const image = await smallImage(stage.dir);
  await stage.serve({ rate: '80mbit' });
  await stage.addImage(`rootfs:${image.tar}`, 'app:1');
  const traced = await stage.mount('app:1', ['--wait', '--trace', 'app']);
  for (const path of [image.small[19]!, image.large]) await sha256(join(traced, path));
  await stage.must(['umount', traced]);
  await stage.must(['trace', 'report', '--wait']);
  // A few bytes of what is large and of some of what is small.
  const root = join(stage.dir, 'small-root');
  const expected = new Map<string, string>();
  for (const path of [image.large, image.medium, ...image.small.slice(0, 20)]) {
    const file = await open(join(root, path), 'r+');
    const { size } = await file.stat();
    for (let at = 5000; at < size; at += 700_000) await file.write(`new at ${at}`, at);
    await file.close();
    expected.set(path, await sha256(join(root, path)));
  }
  const tar = join(stage.dir, 'second.tar');
  await must('tar', ['-C', root, '--sort=name', '--format=pax', '-cf', tar, '.']);
  await stage.addImage(`rootfs:${tar}`, 'app:2');
  const { digest } = await stage.json<ImageDetail>(['image', 'inspect', 'app:1']);
  await until(
    'the patches are ready',
    async () => {
      const { order, patches } = await stage.json<ImageDetail>(['image', 'inspect', 'app:2']);
      return (
        order.ranked > 0 && order.settled && patches.pending === 0 && patches.ready.length === 1
      );
    },
    { timeoutMs: 240_000 },
  );
  const url = `${stage.env.FIRSTLIGHT_SERVER}/v1/delta?image=app:2&base=${digest}`;
  const plain = await fetch(url, { method: 'HEAD' });
  return { stage, image, plainBytes: Number(plain.headers.get('content-length')), expected };
}

test.serial(
  'an update arrives from a hundredth of its bytes, and what it makes is right',
  async (t) => {
    const { stage, image, plainBytes, expected } = await updated(t);
    t.true(plainBytes > CHANGED_BYTES, `${plainBytes}`);
    const before = await sentBytes(stage);
    const dir = await stage.mount('app:2');
    // In the order of the trace the large one is early; others are wanted before they come.
    for (const path of [image.large, image.medium, ...image.small.slice(0, 20)])
      t.is(await sha256(join(dir, path)), expected.get(path)!, path);
    t.is(await sha256(join(dir, image.library)), image.files.get(image.library)!.sha256);
    await stage.must(['mount', 'app:2', await stage.mountPoint('whole'), '--wait']);
    const { bytes, bytesDone, headerBytes } = await stage.mountStatus(dir);
    t.is(bytesDone, bytes);
    t.true(bytes + headerBytes < plainBytes / 100, `${bytes} and ${headerBytes} of ${plainBytes}`);
    const sent = (await sentBytes(stage)) - before;
    t.true(sent < plainBytes / 50, `${sent} of ${plainBytes}`);
    await stage.must(['umount', dir]);
    await stage.must(['umount', join(stage.dir, 'whole')]);
    await stage.must(['verify']);
  },
);

test.serial('an old image that is damaged on the disk costs bytes, not contents', async (t) => {
  const { stage, image, expected } = await updated(t);
  const old = image.files.get(image.medium)!.sha256;
  const path = join(stage.root, 'content', old.slice(0, 2), old.slice(2));
  await chmod(path, 0o644);
  const file = await open(path, 'r+');
  await file.write(
    createHash('shake128', { outputLength: 500_000 }).update('bad').digest(),
    0,
    500_000,
    1000,
  );
  await file.close();
  const dir = await stage.mount('app:2', ['--wait']);
  for (const [changed, digest] of expected) t.is(await sha256(join(dir, changed)), digest, changed);
  await stage.must(['umount', dir]);
  const found = (await stage.run(['verify'])).stdout.toString();
  t.deepEqual(found.match(/^damaged .*$/gm), [`damaged  ${old}`]);
});
