// The child of `doctor`'s probe: makes a tree of one file in a temporary directory, mounts it, says
// what the kernel gave, and unmounts when its standard input ends. A process of its own, since one
// that looks into its own mount can wait for itself for ever.
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildToc } from '../../delta/toc-build.ts';
import { fromText, makeDirectory } from '../../image/tree.ts';
import { native } from '../../native/index.ts';
import { errorJson } from '../print.ts';

/** What the file of the probe holds. */
const TEXT = 'firstlight\n';

function makeStore(base: string) {
  const digest = createHash('sha256').update(TEXT).digest();
  const hex = digest.toString('hex');
  const root = makeDirectory('', 0);
  const inode = {
    ...root.inode,
    type: 'file',
    mode: 0o444,
    size: TEXT.length,
    digest: hex,
  } as const;
  root.children?.set('probe', { name: fromText('probe'), inode });
  for (const name of ['content', 'incoming', 'mnt']) mkdirSync(join(base, name));
  mkdirSync(join(base, 'content', hex.slice(0, 2)));
  writeFileSync(join(base, 'content', hex.slice(0, 2), hex.slice(2)), TEXT);
  writeFileSync(join(base, 'toc'), buildToc(root).bytes);
  writeFileSync(join(base, 'digests'), digest);
}

async function main(base: string): Promise<void> {
  makeStore(base);
  const { Template, Session } = native();
  const template = new Template({
    tocPath: join(base, 'toc'),
    digestsPath: join(base, 'digests'),
    contentDir: join(base, 'content'),
    incomingDir: join(base, 'incoming'),
    partialPrefix: 'probe',
  });
  template.markReady(Uint32Array.of(0));
  const session = new Session(template, {
    mountPoint: join(base, 'mnt'),
    source: 'firstlight-probe',
    threads: 1,
    waitTimeoutMs: 1000,
    passthrough: true,
    allowOther: true,
    onWanted: () => {},
    onTimeout: () => {},
    onClosed: () => {},
  });
  const features = await session.start();
  process.stdout.write(`${JSON.stringify({ features })}\n`);
  process.stdin.resume();
  process.stdin.on('end', async () => {
    const { passthroughOpens } = session.stats();
    await session.unmount(true);
    process.stdout.write(`${JSON.stringify({ passthroughOpens })}\n`, () => process.exit(0));
  });
}

main(process.argv[2] ?? '').catch((error: unknown) => {
  process.stdout.write(`${JSON.stringify({ error: errorJson(error) })}\n`, () => process.exit(1));
});
