import test from 'ava';
import { mountsOf, parseMountInfo } from './mounts.ts';

const INFO = String.raw`22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:50 / /r/snapshots/a/lower ro - fuse.firstlight app:1 ro,user_id=0
41 22 0:51 / /mnt/with\040blank rw - overlay app:1 rw,lowerdir=/r/snapshots/a/lower,upperdir=/r/snapshots/a/upper
42 22 0:52 / /mnt/other rw - overlay x rw,lowerdir=/r/snapshots-of-another/lower
43 22 0:53 / /comma rw - overlay x rw,lowerdir=/r\134,1:2/snapshots/b/lower
44 22 0:54 / /mnt/\303\274 rw - tmpfs t rw
`;

test('mount points are read as they are written', (t) => {
  const mounts = parseMountInfo(INFO);
  t.deepEqual(
    mounts.map(({ mountPoint }) => mountPoint),
    ['/', '/r/snapshots/a/lower', '/mnt/with blank', '/mnt/other', '/comma', '/mnt/ü'],
  );
  t.is(mounts[1]!.type, 'fuse.firstlight');
});

test('what stands on a directory, newest first, overlays with a layer there included', (t) => {
  const mounts = parseMountInfo(INFO);
  const points = (directory: string) => mountsOf(directory, mounts).map((m) => m.mountPoint);
  t.deepEqual(points('/r/snapshots'), ['/mnt/with blank', '/r/snapshots/a/lower']);
  t.deepEqual(points('/r,1:2/snapshots'), ['/comma']);
  t.deepEqual(points('/nothing'), []);
});
