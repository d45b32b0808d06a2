// The regular files of a TOC as optimize/ asks for them: by path and by content.
import { type ImageFile, type ImageFiles, imageFiles } from '../optimize/match.ts';
import { DIGEST_BYTES } from './frame-plan.ts';
import type { Toc } from './toc.ts';

const UNKNOWN = Buffer.alloc(DIGEST_BYTES);

/**
 * The regular files of an image, in tree order.
 * @param digests  32 bytes for each content; where they are zeros, or missing, equal contents of this image are still
 *   known as equal, but not as those of another
 */
export function filesOfToc(toc: Toc, digests: Buffer): ImageFiles {
  // Parents stand before their children.
  const directories: string[] = [''];
  const files: ImageFile[] = [];
  for (let row = 1; row < toc.rows; row++) {
    const parent = toc.parent(row);
    const name = toc.name(row);
    const path = parent === 0 ? name : `${directories[parent]!}/${name}`;
    if (toc.isDirectory(row)) directories[row] = path;
    if (!toc.isFile(row)) continue;
    const content = toc.content(row);
    const sizeBytes = toc.size(row);
    if (content < 0) {
      files.push({ path, sizeBytes });
      continue;
    }
    const digest = digests.subarray(content * DIGEST_BYTES, (content + 1) * DIGEST_BYTES);
    const known = digest.length === DIGEST_BYTES && !digest.equals(UNKNOWN);
    files.push({ path, sizeBytes, digest: known ? digest.toString('hex') : `content ${content}` });
  }
  return imageFiles(files);
}
