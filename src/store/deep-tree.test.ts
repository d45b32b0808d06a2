// Trees that are deeper than a path can say: walked, removed, and with what is left open.
import {
  access,
  constants,
  mkdir,
  mkdtemp,
  readdir,
  readlink,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { dropSnapshot } from '../tree/snapshot.ts';
import { entriesOf, removeTree, walkDirectories } from './deep-tree.ts';
import { makeDeep } from './testkit-deep.ts';

async function directory(t: ExecutionContext): Promise<string> {
  // Thousands of directories take their time on a disk that others use.
  const memory = await access('/dev/shm', constants.W_OK).then(
    () => true,
    () => false,
  );
  const path = await mkdtemp(join(memory ? '/dev/shm' : tmpdir(), 'firstlight-deep-'));
  t.teardown(() => removeTree(path));
  return path;
}

/** Descriptors of this process that are open below a directory. */
async function openBelow(path: string): Promise<number> {
  const fds = await readdir('/proc/self/fd');
  const targets = fds.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => ''));
  return (await Promise.all(targets)).filter((target) => target.startsWith(path)).length;
}

for (const [levels, name] of [
  [3000, 'd'],
  [100, 'n'.repeat(255)],
] as const) {
  test(`${levels} levels of names of ${name.length} bytes are walked and removed`, async (t) => {
    const root = await directory(t);
    const tree = join(root, 'tree');
    await makeDeep(tree, levels, name);
    let directories = 0;
    let files = 0;
    const left: number[] = [];
    let depth = 0;
    await walkDirectories(tree, {
      enter: async (path) => {
        directories++;
        depth++;
        const entries = await entriesOf(path);
        files += entries.filter((entry) => entry.isFile()).length;
        return entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
      },
      leave: async () => {
        left.push(depth--);
      },
    });
    t.is(directories, levels + 1);
    t.is(files, levels + 1, 'one file in each');
    t.deepEqual(left.slice(0, 2), [levels + 1, levels], 'the deepest is left first');
    await removeTree(tree);
    t.deepEqual(await readdir(root), []);
    t.is(await openBelow(root), 0);
  });
}

test('a wide tree of odd names is removed, links are not followed, and files and nothing are fine', async (t) => {
  const root = await directory(t);
  const outside = join(root, 'outside');
  await mkdir(outside);
  await writeFile(join(outside, 'kept'), '');
  const tree = Buffer.from(join(root, 'tree/'));
  await mkdir(tree);
  for (let i = 0; i < 40; i++) {
    const name = Buffer.concat([tree, Buffer.from([0xff, 0x0a, 0x30 + i])]);
    await mkdir(name);
    for (const file of ['a', 'b', '..c']) {
      await writeFile(Buffer.concat([name, Buffer.from(`/${file}`)]), '');
    }
    await symlink(outside, Buffer.concat([name, Buffer.from('/link')]));
  }
  await removeTree(join(root, 'tree'));
  t.deepEqual(await readdir(root), ['outside']);
  t.deepEqual(await readdir(outside), ['kept']);
  await removeTree(join(root, 'nothing'));
  await writeFile(join(root, 'file'), '');
  await removeTree(join(root, 'file'));
  t.deepEqual(await readdir(root), ['outside']);
});

test('an error ends the walk, and closes what it has open', async (t) => {
  const root = await directory(t);
  const tree = join(root, 'tree');
  await makeDeep(tree, 100, 'n'.repeat(60));
  let seen = 0;
  const walk = walkDirectories(tree, {
    enter: async (path) => {
      if (++seen === 90) throw new Error('enough');
      return (await entriesOf(path)).filter((e) => e.isDirectory()).map(({ name }) => name);
    },
  });
  await t.throwsAsync(walk, { message: 'enough' });
  t.is(await openBelow(root), 0);
});

test("a mount's changes are dropped however deep they are", async (t) => {
  const root = await directory(t);
  await makeDeep(join(root, 'a/upper'), 100, 'n'.repeat(60));
  await t.notThrowsAsync(dropSnapshot({ root: join(root, 'a') }));
  t.deepEqual(await readdir(root), []);
});
