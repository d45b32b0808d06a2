// Ends the daemon when it has had nothing to do for a while.

/** Calls `onIdle` once nothing has been in use for `idleMs`. */
export class IdleTimer {
  #uses = 0;
  #timer: NodeJS.Timeout | undefined;
  readonly #idleMs: number;
  readonly #onIdle: () => void;

  /** @param idleMs  infinite: never */
  constructor(idleMs: number, onIdle: () => void) {
    this.#idleMs = idleMs;
    this.#onIdle = onIdle;
    this.#arm();
  }

  #arm(): void {
    if (this.#uses > 0 || !Number.isFinite(this.#idleMs)) return;
    this.#timer = setTimeout(this.#onIdle, this.#idleMs);
  }

  /** Something is in use until the returned function is called (once; later calls do nothing). */
  use(): () => void {
    this.#uses++;
    clearTimeout(this.#timer);
    let released = false;
    return () => {
      if (released) return;
      released = true;
      this.#uses--;
      this.#arm();
    };
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#uses = Number.POSITIVE_INFINITY;
  }
}
