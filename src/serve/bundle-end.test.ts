// Bundles that are asked for while the server ends.
import test from 'ava';
import { ImageStore } from './image-store.ts';
import { addRootfs, makeDirectory, makeTar, noise, quiet, serve } from './testkit.ts';

test('a bundle that is asked for while the server ends is refused, and nothing else', async (t) => {
  const dataDir = await makeDirectory(t);
  const filling = await serve(t, { dataDir });
  const same = noise(50_000, 1);
  await addRootfs(filling.url, 'old:1', await makeTar({ same }));
  await addRootfs(filling.url, 'new:1', await makeTar({ same, more: noise(1000, 2) }));
  await filling.close();
  const store = await ImageStore.open({ dataDir, log: quiet });
  const [old, image] = [await store.find('old:1', undefined), await store.find('new:1', undefined)];
  await store.bundles.close();
  // A rejection that nobody has taken by the end of its turn ends a process.
  const untaken: unknown[] = [];
  const note = (error: unknown) => untaken.push(error);
  process.on('unhandledRejection', note);
  t.teardown(() => process.off('unhandledRejection', note));
  await t.throwsAsync(store.bundleFor(image, [old.digest], true), { message: /shutting down/ });
  t.deepEqual(untaken, []);
  await store.close();
});
