// A tiny image that runs: busybox and two users, as the tar of a root filesystem. Built here, so that
// tests of the command line need no package mirror.
import { access, chmod, copyFile, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { must } from './proc.ts';

const APPLETS = [
  'cat',
  'echo',
  'env',
  'false',
  'hostname',
  'id',
  'ifconfig',
  'kill',
  'ls',
  'ps',
  'pwd',
  'sh',
  'sleep',
  'touch',
  'true',
  'wc',
];

const PASSWD = 'root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n';
const GROUP = 'root:x:0:\nweb:x:34:\nlogs:x:90:web\n';

/** Where Debian's busybox-static puts it. */
async function busybox(): Promise<string> {
  for (const path of ['/bin/busybox', '/usr/bin/busybox']) {
    const there = await access(path).then(
      () => true,
      () => false,
    );
    if (there) return path;
  }
  throw new Error('busybox is missing: apt-get install busybox-static');
}

/** Builds the image below `dir`; path of the tar. */
export async function busyboxImage(dir: string): Promise<string> {
  const root = join(dir, 'busybox-root');
  for (const name of ['bin', 'dev', 'etc', 'proc', 'srv', 'sys', 'tmp']) {
    await mkdir(join(root, name), { recursive: true });
  }
  await copyFile(await busybox(), join(root, 'bin/busybox'));
  await chmod(join(root, 'bin/busybox'), 0o755);
  for (const applet of APPLETS) await symlink('busybox', join(root, 'bin', applet));
  await writeFile(join(root, 'etc/passwd'), PASSWD);
  await writeFile(join(root, 'etc/group'), GROUP);
  await writeFile(join(root, 'etc/not-executable'), 'text\n', { mode: 0o644 });
  const tar = join(dir, 'busybox.tar');
  await must('tar', ['-C', root, '--sort=name', '--numeric-owner', '-cf', tar, '.']);
  return tar;
}

/** The same as an OCI layout with a config of its own; the directory. */
export async function busyboxLayout(dir: string, config: string[]): Promise<string> {
  const layout = join(dir, 'busybox-layout');
  await busyboxImage(dir);
  await must('umoci', ['init', '--layout', layout]);
  await must('umoci', ['new', '--image', `${layout}:latest`]);
  await must('umoci', ['insert', '--image', `${layout}:latest`, join(dir, 'busybox-root'), '/']);
  await must('umoci', ['config', '--image', `${layout}:latest`, ...config]);
  return layout;
}
