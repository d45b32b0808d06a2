// The stand-in does to the disk what the addon does, with the same errors.
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { loadAddon, type NativeAddon } from './index.ts';
import { portableAddon } from './portable.ts';

const WHY = new FirstlightError('unsupported', 'no addon here');

const SIDES: [name: string, addon: NativeAddon][] = [
  ['the addon', loadAddon()],
  ['the stand-in', portableAddon(WHY)],
];

for (const [name, addon] of SIDES) {
  test(`${name} writes a batch, replaces nothing, and removes what it could not write`, async (t) => {
    const dir = await mkdtemp(join(tmpdir(), 'firstlight-portable-'));
    t.teardown(() => rm(dir, { recursive: true }));
    const data = Buffer.from('onetwo');
    await writeFile(join(dir, 'b'), 'there before');
    await addon.writeFiles(dir, data, [
      { name: 'a', offset: 0, length: 3 },
      { name: 'b', offset: 3, length: 3 },
    ]);
    t.is(await readFile(join(dir, 'a'), 'utf8'), 'one');
    t.is((await stat(join(dir, 'a'))).mode & 0o777, 0o444);
    t.is(await readFile(join(dir, 'b'), 'utf8'), 'there before');
    const long = 'n'.repeat(256);
    await t.throwsAsync(addon.writeFiles(dir, data, [{ name: long, offset: 0, length: 3 }]), {
      code: 'ENAMETOOLONG',
    });
    t.deepEqual((await readdir(dir)).sort(), ['a', 'b']);
  });

  test(`${name} renames, and takes what is renamed already for done`, async (t) => {
    const dir = await mkdtemp(join(tmpdir(), 'firstlight-portable-'));
    t.teardown(() => rm(dir, { recursive: true }));
    await mkdir(join(dir, 'to'));
    await writeFile(join(dir, 'x'), 'x');
    const pairs: [string, string][] = [['x', 'to/x']];
    await addon.renameFiles(dir, pairs);
    await addon.renameFiles(dir, pairs);
    t.is(await readFile(join(dir, 'to/x'), 'utf8'), 'x');
    await t.throwsAsync(addon.renameFiles(dir, [['none', 'to/none']]), { code: 'ENOENT' });
  });

  test(`${name} makes a filesystem durable, and says where there is none`, async (t) => {
    await t.notThrowsAsync(addon.syncfs(tmpdir()));
    await t.throwsAsync(addon.syncfs('/no/such/place'), { code: 'ENOENT' });
  });

  test(`${name} says why it cannot unmount`, async (t) => {
    const dir = await mkdtemp(join(tmpdir(), 'firstlight-portable-'));
    t.teardown(() => rm(dir, { recursive: true }));
    // umount(8) does not tell a directory that is not there from one without a mount.
    for (const path of [dir, '/no/such/place']) {
      const error = await t.throwsAsync<NodeJS.ErrnoException>(addon.umount(path, 8));
      t.true(['EINVAL', 'ENOENT', 'EPERM'].includes(error.code!), error.code);
    }
  });
}

test('what only the addon can do says why it is not there', (t) => {
  const addon = portableAddon(WHY);
  t.is(
    t.throws(() => new addon.Session({} as never, {} as never)),
    WHY as never,
  );
  t.is(
    t.throws(() => addon.upper),
    WHY as never,
  );
});
