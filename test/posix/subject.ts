// What the suites run on: a plain directory with the unpacked image, `--rw overlay` and `--rw fuse`
// mounts of it, `--rw off`. What does not live here: what is done to them.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { must, until } from '../lib/proc.ts';
import type { Stage } from '../lib/stage.ts';
import type { Subject } from './script.ts';

/** The subjects that a run covers; FIRSTLIGHT_SUBJECTS=plain,overlay narrows it. */
export function wantedSubjects(all: Subject[] = ['plain', 'overlay', 'fuse']): Subject[] {
  const wanted = process.env.FIRSTLIGHT_SUBJECTS?.split(',');
  return wanted === undefined ? all : (wanted as Subject[]);
}

/** Unpacks a tar the way a container runtime lays a layer down. */
export async function unpackTar(tar: string, directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  const options = ['--numeric-owner', '--xattrs', '--xattrs-include=*', '-xpf', tar];
  await must('tar', ['-C', directory, ...options], { timeoutMs: 280_000 });
}

/** A directory on tmpfs, on another filesystem than any subject; removed with the stage. */
export async function otherFilesystem(stage: Stage): Promise<string> {
  const directory = await mkdtemp('/dev/shm/firstlight-other-');
  stage.onClose(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Adds a rootfs tar to the stage's server, which it starts where there is none. */
export async function serveTar(stage: Stage, tar: string, name: string): Promise<void> {
  if (stage.env.FIRSTLIGHT_SERVER === undefined) await stage.serve();
  await stage.addImage(`rootfs:${tar}`, name);
}

/**
 * Opens a subject over an image: its directory.
 * @param options  further options of `firstlight mount`
 */
export async function openSubject(
  stage: Stage,
  subject: Subject,
  tar: string,
  image: string,
  options: string[] = [],
): Promise<string> {
  const name = `${subject}-${image.replaceAll(/\W/g, '-')}`;
  if (subject === 'plain') {
    const directory = join(stage.dir, name);
    await unpackTar(tar, directory);
    return directory;
  }
  return stage.mount(image, ['--rw', subject, ...options], name);
}

/** Takes a subject away again. */
export async function closeSubject(
  stage: Stage,
  subject: Subject,
  directory: string,
): Promise<void> {
  if (subject === 'plain') {
    await rm(directory, { recursive: true, force: true });
    return;
  }
  // A program that has just ended may still count as a user of the mount.
  const gone = async () => {
    const { code } = await stage.run(['umount', directory]);
    // Nothing is mounted there: a run that failed may have taken it away.
    return code === 0 || code === 3;
  };
  await until('unmounted', gone, { everyMs: 100 });
}
