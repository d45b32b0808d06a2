// Which session a mount gets: the one that was asked for, or the portable one where the addon cannot
// be loaded. What does not live here: the sessions (fuse/).
import { kernelSessions } from '../fuse/kernel-session.ts';
import { mayOpenAlone } from '../fuse/opens.ts';
import { portableSessions } from '../fuse/portable/portable-session.ts';
import type { Logger } from '../log/log.ts';
import { addonError } from '../native/index.ts';
import type { SessionFactory } from '../tree/session.ts';
import type { MountRequest } from './control.ts';

/** Chooses for one mount, and logs a choice that is not the user's. */
export function chooseSession(
  { session, threads, passthrough, opens = 'auto', image }: MountRequest,
  log: Logger,
): SessionFactory {
  if (session === 'fuse-native') return portableSessions({ log });
  const error = addonError();
  if (error === undefined) {
    return kernelSessions({ threads, passthrough, unseenOpens: mayOpenAlone(opens) });
  }
  log.warn({ image, because: error.line }, 'mounted by fuse-native, which is slower');
  return portableSessions({ log });
}
