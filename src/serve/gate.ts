// Who may use stored files and who may take them away: any number of users at once, or one remover
// alone. What does not live here: any knowledge of what is used or removed.
//
// An intake leaves out contents that the store has already, and an encoder reads contents over
// seconds; neither may lose them halfway. Removals wait for a moment without users. They do not
// keep new users out while they wait, so that a delete never delays an answer.

/** Counts users; a remover runs only while there is none. */
export class Gate {
  #users = 0;
  #removing = false;
  #waiting: (() => void)[] = [];

  /** Runs `work` as one of many users; waits only while a remover is at work. */
  async use<T>(work: () => Promise<T>): Promise<T> {
    while (this.#removing) await this.#change();
    this.#users++;
    try {
      return await work();
    } finally {
      this.#users--;
      this.#wake();
    }
  }

  /** Runs `work` alone, as soon as nobody else is inside. */
  async remove<T>(work: () => Promise<T>): Promise<T> {
    while (this.#removing || this.#users > 0) await this.#change();
    this.#removing = true;
    try {
      return await work();
    } finally {
      this.#removing = false;
      this.#wake();
    }
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
