// `firstlight mount NAME:TAG DIR`.
import type { MountStatus } from '../../daemon/control.ts';
import { call } from '../client.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { resolveMountPoint } from '../mount-point.ts';
import { checkMountPermission, mountRequest } from '../mount-request.ts';

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const [image = '', path = ''] = args;
  const request = await mountRequest(context, image, options);
  const place = await resolveMountPoint(path, context.settings.text('root'));
  checkMountPermission();
  const { TransferBar } =
    request.wait && !context.json && !context.quiet && process.stderr.isTTY === true
      ? await import('../progress.ts')
      : { TransferBar: undefined };
  const bar = TransferBar === undefined ? undefined : new TransferBar();
  let mount: MountStatus | undefined;
  try {
    mount = await call<MountStatus>(
      context,
      { ...request, directory: place.directory, ...(place.dead ? { replaceDead: true } : {}) },
      {
        onEvent: (event) => {
          if (event.event === 'status') bar?.update(event.mounts);
        },
      },
    );
    if (mount !== undefined) bar?.update([mount]);
  } finally {
    bar?.stop();
  }
  if (context.json) context.printJson(mount);
  return undefined;
}
