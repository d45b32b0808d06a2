// `firstlight trace on|off [DIR]`: begins and ends the recording of mounts that are in use.
import type { TraceSwitched } from '../../daemon/control.ts';
import { FirstlightError } from '../../errors/errors.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { resolveExistingMount } from '../mount-point.ts';

/** One mount in words; no line where nothing was and nothing is recorded. */
function describe({ directory, group, path }: TraceSwitched): string[] {
  const lines: string[] = [];
  if (path !== null) lines.push(`${directory}: recorded ${path}`);
  if (group !== null) lines.push(`${directory}: recording for group ${group}`);
  return lines;
}

async function switchTracing(
  context: Context,
  on: boolean,
  path: string | undefined,
  group: string,
): Promise<undefined> {
  const directory = path === undefined ? undefined : resolveExistingMount(path);
  const where = directory === undefined ? {} : { directory };
  const request = { op: 'trace', on, group, ...where } as const;
  const switched = (await call<TraceSwitched[]>(context, request, { start: false })) ?? [];
  if (switched.length === 0) {
    const what = path === undefined ? 'nothing is mounted' : `${path} is not mounted by firstlight`;
    throw new FirstlightError('not-found', what, {
      hint: 'mount an image first; see firstlight ls',
    });
  }
  if (context.json) context.printJson(switched);
  const lines = switched.flatMap(describe);
  if (!context.json) for (const line of lines) context.print(line);
  if (lines.length === 0) context.note('nothing was recorded');
  return undefined;
}

/** `trace on`. */
export const on = {
  run: (context: Context, [path]: string[], options: OptionValues) =>
    switchTracing(context, true, path, (options.group as string | undefined) ?? ''),
};

/** `trace off`. */
export const off = {
  run: (context: Context, [path]: string[]) => switchTracing(context, false, path, ''),
};
