// A delta server that wants tokens: pulls go their ordinary way until the worker has a right one.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import test from 'ava';
import { makeDirectory, serve } from '../serve/testkit.ts';
import { makeToken } from '../serve/token.ts';
import { snapshotter } from './testkit.ts';
import { addImage, layeredImage, pullLabels } from './testkit-images.ts';

test('a pull is an ordinary one while the server refuses, and a lazy one as soon as it does not', async (t) => {
  const open = await serve(t);
  const app = await layeredImage({ 'etc/os': 'base' }, { 'app/version': 'one' });
  await addImage(open.url, app, 'app:1');
  await open.close();
  const directory = await makeDirectory(t);
  const tokensFile = join(directory, 'tokens');
  const tokenFile = join(directory, 'token');
  const [right, wrong] = [makeToken('node-1'), makeToken('node-1')];
  await writeFile(tokensFile, right.line, { mode: 0o600 });
  const { url } = await serve(t, { dataDir: open.dataDir, tokensFile });
  const h = await snapshotter(t, { server: url, tokenFile, prepareTimeoutMs: 30_000 });
  /** Prepares a layer as the kubelet does; whether it comes lazily. */
  const pull = async (index: number) => {
    const parent = index === 0 ? '' : app.chainIds[index - 1]!;
    const labels = pullLabels(app, index, 'reg.example/app:1');
    try {
      await h.client.prepare(`extract-${index}-${Math.random()}`, parent, labels);
      return false;
    } catch (error) {
      if ((error as { code?: number }).code !== status.ALREADY_EXISTS) throw error;
      return true;
    }
  };
  const counted = async () => {
    const { values } = await h.metrics.pulls.get();
    return values.map(({ labels, value }) => `${labels.way} ${labels.reason} ${value}`);
  };
  t.false(await pull(0), 'there is no token');
  await writeFile(tokenFile, wrong.token, { mode: 0o600 });
  t.false(await pull(0), 'it is the wrong one');
  t.deepEqual(await counted(), ['ordinary failed 2']);
  await writeFile(tokenFile, right.token);
  for (const index of [0, 1]) t.true(await pull(index));
  t.deepEqual(await counted(), ['ordinary failed 2', 'lazy  2']);
});
