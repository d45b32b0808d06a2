// Makes directories deeper than a path can say, for tests.
import { mkdir, open, writeFile } from 'node:fs/promises';

/** Makes `levels` directories in each other below `root`, which is made too, with a file in each. */
export async function makeDeep(root: string, levels: number, name: string): Promise<void> {
  await mkdir(root, { recursive: true });
  let handle = await open(root);
  for (let level = 0; ; level++) {
    const here = `/proc/self/fd/${handle.fd}`;
    await writeFile(`${here}/file`, 'x');
    if (level === levels) break;
    await mkdir(`${here}/${name}`);
    const next = await open(`${here}/${name}`);
    await handle.close();
    handle = next;
  }
  await handle.close();
}
