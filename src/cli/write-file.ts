// Files that commands write for the user: there whole or not at all.
import { randomBytes } from 'node:crypto';
import { open, rename, rm, stat } from 'node:fs/promises';
import { toFirstlightError } from '../errors/errors.ts';

/** True where a path is something that cannot be replaced by a file, such as /dev/stdout. */
async function isSpecial(path: string): Promise<boolean> {
  try {
    return !(await stat(path)).isFile();
  } catch {
    // Not there yet; what else is wrong with it, opening it will say.
    return false;
  }
}

/** Writes `text` to `path`, aside first. @throws FirstlightError of the errno, 'no-space' among them */
export async function writeFileWhole(path: string, text: string): Promise<void> {
  try {
    if (await isSpecial(path)) {
      const file = await open(path, 'w');
      await file.writeFile(text).finally(() => file.close());
      return;
    }
    const aside = `${path}.${randomBytes(4).toString('hex')}.new`;
    try {
      const file = await open(aside, 'wx');
      await file.writeFile(text).finally(() => file.close());
      await rename(aside, path);
    } catch (error) {
      // The first error is the one that matters.
      await rm(aside, { force: true }).catch(() => undefined);
      throw error;
    }
  } catch (error) {
    throw toFirstlightError(error);
  }
}
