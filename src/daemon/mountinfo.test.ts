import test from 'ava';
import { isBelow, mountAt, mountOption, parseMountInfo } from './mountinfo.ts';

const TEXT = `22 28 0:21 / /proc rw,nosuid - proc proc rw
30 28 0:30 / /mnt/a\\040b rw,relatime shared:1 master:2 - fuse.firstlight redis:7 ro,user_id=0
31 30 0:31 / /mnt/a\\040b rw - overlay firstlight rw,lowerdir=/s/x\\134,y/lower,upperdir=/s/u

garbage
`;

test('lines with any number of optional fields, and escaped names', (t) => {
  const mounts = parseMountInfo(TEXT);
  t.is(mounts.length, 3);
  t.like(mounts[0], { mountId: 22, mountPoint: '/proc', fsType: 'proc', source: 'proc' });
  t.like(mounts[1], { mountPoint: '/mnt/a b', fsType: 'fuse.firstlight', source: 'redis:7' });
});

test('the topmost mount counts', (t) => {
  const mounts = parseMountInfo(TEXT);
  t.is(mountAt(mounts, '/mnt/a b')?.fsType, 'overlay');
  t.is(mountAt(mounts, '/mnt'), undefined);
});

test('options with escaped commas', (t) => {
  const mount = parseMountInfo(TEXT)[2]!;
  t.is(mountOption(mount, 'lowerdir'), '/s/x,y/lower');
  t.is(mountOption(mount, 'upperdir'), '/s/u');
  t.is(mountOption(mount, 'workdir'), undefined);
});

test('below', (t) => {
  t.true(isBelow('/a', '/a'));
  t.true(isBelow('/a/b', '/a'));
  t.false(isBelow('/ab', '/a'));
  t.true(isBelow('/a', '/'));
});
