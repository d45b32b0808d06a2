import { readdir, readFile } from 'node:fs/promises';
import test from 'ava';
import { Fixture, noise, Tree } from './fixture.ts';

test('smoke', async (t) => {
  const tree = new Tree();
  tree.file('etc/hello', 'hello\n');
  tree.file('big', noise(3 << 20, 1));
  const fixture = await Fixture.make(t, tree);
  await fixture.storeAll();
  const { points, features } = await fixture.mount({ ready: true });
  t.log(features);
  t.deepEqual(await readdir(points[0]!), ['big', 'etc']);
  t.is(await readFile(`${points[0]}/etc/hello`, 'utf8'), 'hello\n');
  t.deepEqual(await readFile(`${points[0]}/big`), noise(3 << 20, 1));
  t.log(await fixture.stats());
  await fixture.send({ do: 'unmount', mount: 0, detach: false });
  t.log(await fixture.events(), await fixture.stats());
  await fixture.send({ do: 'closeTemplate' });
});
