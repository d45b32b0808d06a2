// `firstlight diff DIR`: what has changed since the image, as `docker diff` prints it.
import { bytesOf, textOf } from '../../image/tree.ts';
import { diff } from '../../tree/diff.ts';
import { readChanges } from '../commit/changes.ts';
import type { Context } from '../context.ts';

export async function run(context: Context, args: string[]): Promise<undefined> {
  const { root, upper } = await readChanges(context, args[0] ?? '');
  const changes = [...diff(root, upper)];
  if (context.json) {
    context.printJson(changes.map(({ kind, path }) => ({ kind, path: textOf(path) })));
    return undefined;
  }
  // Names are bytes: they are printed as they are.
  const lines = changes.map(({ kind, path }) => bytesOf(`${kind} ${path}\n`));
  await new Promise<void>((resolve, reject) => {
    process.stdout.write(Buffer.concat(lines), (error) =>
      error === null || error === undefined ? resolve() : reject(error),
    );
  });
  return undefined;
}
