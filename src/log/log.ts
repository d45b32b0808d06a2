// Structured logging (pino, JSON lines on stderr). FIRSTLIGHT_LOG sets the level.
import { destination, type Logger, pino } from 'pino';

export type { Logger } from 'pino';

/**
 * A logger for one part of the program.
 * @param part  name that every line carries, e.g. `receive`
 * @param fd    file descriptor to write to; 2 unless told otherwise
 */
export function makeLogger(part: string, fd = 2): Logger {
  return pino(
    { base: { part }, level: process.env.FIRSTLIGHT_LOG ?? 'info' },
    destination({ fd, sync: true }),
  );
}
