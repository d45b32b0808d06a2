// What readers get where contents cannot be had for now: an error at once, and so does every later one, until that is
// over. What does not live here: what stands in the way, and when it is tried again (transfer.ts).
import { type FirstlightError, toErrno } from '../errors/errors.ts';
import type { Logger } from '../log/log.ts';
import type { Template } from '../tree/template.ts';
import type { Arrivals } from './arrivals.ts';
import type { FramePlan } from './frame-plan.ts';

/** The denials of one transfer. */
export class Denials {
  readonly #arrivals: Pick<Arrivals, 'missing' | 'isReady'>;
  readonly #template: Pick<Template, 'toc' | 'markFailed' | 'clearFailed'>;
  readonly #log: Logger;
  /** Contents that will not come whatever else is over: nobody asks for them any more. */
  readonly #givenUp = new Set<number>();
  #isRefused = false;

  constructor(
    arrivals: Pick<Arrivals, 'missing' | 'isReady'>,
    template: Pick<Template, 'toc' | 'markFailed' | 'clearFailed'>,
    log: Logger,
  ) {
    this.#arrivals = arrivals;
    this.#template = template;
    this.#log = log;
  }

  /** The server has refused since it gave anything. */
  get isRefused(): boolean {
    return this.#isRefused;
  }

  /** The store cannot be written. */
  storeFailed(error: unknown): void {
    this.#denyAll(error);
  }

  storeMended(): void {
    this.#allow();
    this.#log.info('the store can be written again');
  }

  /** The server will not give it. */
  refused(error: FirstlightError): void {
    if (!this.#isRefused)
      this.#log.error({ err: error }, 'the server refuses: what is missing cannot be read');
    this.#isRefused = true;
    this.#denyAll(error);
  }

  accepted(): void {
    this.#isRefused = false;
    this.#allow();
    this.#log.info('the server gives again');
  }

  /** A frame came wrong too often: what it brings is asked for no more, until `forgive`. */
  gaveUp(plan: FramePlan, frame: number, error: FirstlightError): void {
    const { toc } = this.#template;
    const contents = new Set([...plan.partsOf(frame)].map((part) => toc.contentOfPart(part)));
    const missing = [...contents].filter((content) => !this.#arrivals.isReady(content));
    for (const content of missing) this.#givenUp.add(content);
    this.#template.markFailed(Uint32Array.from(missing), toErrno(error));
    this.#log.error(
      { err: error, frame, contents: missing.length },
      'a frame came wrong too often',
    );
  }

  /** What was given up is asked for again. */
  forgive(): void {
    this.#givenUp.clear();
    this.#allow();
  }

  #denyAll(error: unknown): void {
    this.#template.markFailed(this.#waitedFor(), toErrno(error));
  }

  #allow(): void {
    this.#template.clearFailed(this.#waitedFor());
  }

  /** What is missing and will come, as soon as nothing stands in the way. */
  #waitedFor(): Uint32Array {
    const missing = this.#arrivals.missing();
    return Uint32Array.from(missing.filter((content) => !this.#givenUp.has(content)));
  }
}
