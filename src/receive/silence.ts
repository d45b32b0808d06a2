// How long is waited for a connection that brings nothing. What does not live here: what is done then (frame-stream.ts,
// out-of-order.ts, piece-routes.ts).

/**
 * A connection that brings nothing for so many ms, while something is awaited of it, may be dead: it is asked for
 * over another.
 */
export const SILENT_MS = 3000;

/**
 * Waits for a silence.
 * @param idleMs    how long nothing has come by now, in ms
 * @param silentMs  how long that is to be
 * @returns `begun` resolves then; `stop` ends the waiting
 */
export function awaitSilence(
  idleMs: () => number,
  silentMs: number,
): { begun: Promise<'silent'>; stop(): void } {
  const { promise, resolve } = Promise.withResolvers<'silent'>();
  const look = () => {
    const leftMs = silentMs - idleMs();
    if (leftMs <= 0) resolve('silent');
    else timer = setTimeout(look, leftMs);
  };
  let timer = setTimeout(look, silentMs);
  return { begun: promise, stop: () => clearTimeout(timer) };
}
