// One mount in the keeper, as the tree knows mounts. What does not live here: the keeper's socket, and
// what is said there (keeper.ts).
import { OPENS, type Opens, type SessionFeatures, type SessionStats } from '../native/index.ts';
import type { Accesses, Session, SessionRequest } from '../tree/session.ts';
import type { Template } from '../tree/template.ts';
import type { Keeper } from './keeper.ts';

/** A session that goes on where this process ends. */
export class KeptSession implements Session {
  readonly #keeper: Keeper;
  readonly #template: Template;
  readonly #request: SessionRequest;
  #opens: Opens = OPENS.Seen;

  constructor(keeper: Keeper, template: Template, request: SessionRequest) {
    this.#keeper = keeper;
    this.#template = template;
    this.#request = request;
  }

  start(): Promise<SessionFeatures> {
    return this.#keeper.mount(this.#template, this.#request, () => this.#opens);
  }

  unmount(detach: boolean): Promise<void> {
    return this.#keeper.unmount(this.#template.digest, this.#request.mountPoint, detach);
  }

  stats(): SessionStats {
    return this.#keeper.stats(this.#template.digest);
  }

  setOpens(opens: Opens): boolean {
    if (!this.#keeper.unseenOpens) return true;
    this.#opens = opens;
    this.#keeper.setOpens(this.#template.digest, opens);
    return !this.stats().opensUnseen;
  }

  /** What containers read is recorded by the daemon's own mounts only. */
  setTracing(): void {}

  takeTrace(): Accesses {
    return { accesses: [], lost: 0 };
  }
}
