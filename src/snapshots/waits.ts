// How long readers wait for contents: from the moment in which a want is heard until the parts are there. A want
// that is heard twice counts once. What does not live here: who waits (native/), and fetching.
import type { Template } from '../tree/template.ts';

interface Want {
  content: number;
  firstPart: number;
  lastPart: number;
  /** performance.now() when it was heard. */
  since: number;
}

export class WaitTimes {
  readonly #template: Template;
  readonly #observe: (seconds: number) => void;
  readonly #wants = new Map<string, Want>();
  readonly #stop: () => void;

  /** @param observe  hears of each wait that is over, in seconds */
  constructor(template: Template, observe: (seconds: number) => void) {
    this.#template = template;
    this.#observe = observe;
    const look = () => this.#look();
    // Failed ones are not counted: their readers got an error, which is another figure.
    const failed = (contents: Uint32Array) => this.#drop(contents);
    this.#stop = template.follow({
      markReady: look,
      markParts: look,
      markFailed: failed,
      clearFailed: () => undefined,
      // Who waited goes on waiting.
      forget: () => undefined,
    });
  }

  wanted(content: number, firstPart: number, lastPart: number): void {
    const key = `${content} ${firstPart} ${lastPart}`;
    if (this.#wants.has(key)) return;
    this.#wants.set(key, { content, firstPart, lastPart, since: performance.now() });
    this.#look();
  }

  #look(): void {
    for (const [key, want] of this.#wants) {
      if (!this.#template.states.readable(want)) continue;
      this.#wants.delete(key);
      this.#observe((performance.now() - want.since) / 1000);
    }
  }

  #drop(contents: Uint32Array): void {
    const gone = new Set(contents);
    for (const [key, { content }] of this.#wants) if (gone.has(content)) this.#wants.delete(key);
  }

  stop(): void {
    this.#stop();
  }
}
