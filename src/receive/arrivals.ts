// What of an image has arrived: takes verified parts into the store, writes down whose they are, and
// tells the template, in this order: bytes on disk, then the slots that name them, then the marks
// that let readers go on. What does not live here: fetching, retrying, and which frame a part is in.
import { readdir } from 'node:fs/promises';
import { constants } from 'node:os';
import type { DecodedPart } from '../delta/bundle.ts';
import type { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import { isZero } from '../store/digest-set.ts';
import type { SlotFile, StoredImage } from '../store/image.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { PARTIAL, partialPrefix } from '../store/layout.ts';
import type { Template } from '../tree/template.ts';
import { PartialContent } from './partial.ts';

/** What is told of each part as it counts as arrived, or no longer does. */
export interface PartListener {
  partArrived(part: number): void;
  partLost(part: number): void;
}

/** A content whose parts were each right and whose whole was not: the server's digests disagree. */
export class WrongContentError extends FirstlightError {
  readonly content: number;

  constructor(content: number, path: string) {
    super('corrupt', `the parts of ${path} do not make the content that the server announced`, {
      hint: 'add the image to the server again',
    });
    this.content = content;
  }
}

/** The contents of one image in the store, as they come. */
export class Arrivals {
  readonly #store: LayerStore;
  readonly #image: StoredImage;
  readonly #template: Template;
  readonly #toc: Toc;
  readonly #digests: SlotFile;
  readonly #parts: SlotFile;
  /** 1 for every part that is there; through all contents. */
  readonly #have: Uint8Array;
  /** 1 for every content that is whole, verified and marked ready. */
  readonly #ready: Uint8Array;
  readonly #partials = new Map<number, PartialContent>();
  /**
   * Contents that were ready or partly there and are no longer: who had read of them may have read what is
   * wrong. They stay Failed until the whole is back.
   */
  readonly #barred = new Set<number>();
  /** End of the last write for each large content: they follow one another. */
  readonly #queues = new Map<number, Promise<void>>();
  #readyCount = 0;
  #closing: Promise<void> | undefined;
  listener: PartListener | undefined;

  private constructor(
    store: LayerStore,
    image: StoredImage,
    template: Template,
    digests: SlotFile,
    parts: SlotFile,
  ) {
    this.#store = store;
    this.#image = image;
    this.#template = template;
    this.#toc = template.toc;
    this.#digests = digests;
    this.#parts = parts;
    this.#have = new Uint8Array(this.#toc.parts);
    this.#ready = new Uint8Array(this.#toc.contents);
  }

  /**
   * Finds what is there of an image, and marks it in the template.
   * @param repair  the template knew the image as complete: what is missing has been lost
   */
  static async open(
    store: LayerStore,
    image: StoredImage,
    template: Template,
    repair = false,
  ): Promise<Arrivals> {
    const digests = await image.openDigests();
    try {
      const arrivals = new Arrivals(store, image, template, digests, await image.openParts());
      await arrivals.#load();
      if (repair) arrivals.#bar(arrivals.incomplete());
      return arrivals;
    } catch (error) {
      await digests.close();
      throw error;
    }
  }

  /** Number of contents that are whole. */
  get readyCount(): number {
    return this.#readyCount;
  }

  get complete(): boolean {
    return this.#readyCount === this.#toc.contents;
  }

  hasPart(part: number): boolean {
    return this.#have[part] === 1;
  }

  isReady(content: number): boolean {
    return this.#ready[content] === 1;
  }

  /** Contents that are not whole. */
  incomplete(): number[] {
    const incomplete: number[] = [];
    for (let c = 0; c < this.#ready.length; c++) if (this.#ready[c] === 0) incomplete.push(c);
    return incomplete;
  }

  /** Contents that are not whole and can be waited for. */
  missing(): number[] {
    return this.incomplete().filter((content) => !this.#barred.has(content));
  }

  async #load(): Promise<void> {
    const ready: number[] = [];
    for (let c = 0; c < this.#toc.contents; c++) {
      if (this.#store.contents.claim(this.#digests.slots, c * 32)) ready.push(c);
    }
    this.#markReady(ready);
    const prefix = partialPrefix(this.#image.digest);
    for (const name of await readdir(this.#store.layout.incoming)) {
      const found = PARTIAL.exec(name);
      if (found?.[1] !== prefix) continue;
      const content = Number(found[2]);
      if (content < this.#ready.length && this.#ready[content] === 0 && this.#isLarge(content)) {
        await this.#loadPartial(content);
      } else {
        await this.#store.io.remove(`${this.#store.layout.incoming}/${name}`);
      }
    }
  }

  #isLarge(content: number): boolean {
    return this.#toc.partCount(content) > 1;
  }

  async #loadPartial(content: number): Promise<void> {
    const partial = this.#partial(content);
    const indexes = await partial.check(this.#parts.slots);
    // Without the digest of the whole the parts cannot be finished; they are asked for again.
    if (indexes.length === 0 || isZero(this.#digests.slots, content * 32)) {
      this.#partials.delete(content);
      return partial.discard();
    }
    const first = this.#toc.firstPart(content);
    this.#markParts(indexes.map((index) => first + index));
    if (indexes.length === partial.facts.parts) await this.#finish(content);
  }

  #partial(content: number): PartialContent {
    let partial = this.#partials.get(content);
    if (partial === undefined) {
      const facts = {
        content,
        bytes: this.#toc.contentSize(content),
        firstPart: this.#toc.firstPart(content),
        parts: this.#toc.partCount(content),
        path: this.#store.layout.partialFile(this.#image.digest, content),
      };
      partial = new PartialContent(facts, this.#store.io);
      this.#partials.set(content, partial);
    }
    return partial;
  }

  #markReady(contents: number[]): void {
    const fresh = contents.filter((content) => this.#ready[content] === 0);
    if (fresh.length === 0) return;
    for (const content of fresh) {
      this.#ready[content] = 1;
      this.#readyCount++;
      this.#setParts(content, 1);
      this.#partials.delete(content);
      this.#barred.delete(content);
    }
    this.#template.markReady(Uint32Array.from(fresh));
  }

  /** Marks parts of one large content. */
  #markParts(parts: number[]): void {
    for (const part of parts) {
      if (this.#have[part] === 1) continue;
      this.#have[part] = 1;
      this.listener?.partArrived(part);
    }
    if (this.#barred.has(this.#toc.contentOfPart(parts[0]!))) return;
    this.#template.markParts(Uint32Array.from(parts));
  }

  #setParts(content: number, have: 0 | 1): void {
    const first = this.#toc.firstPart(content);
    for (let part = first; part < first + this.#toc.partCount(content); part++) {
      if (this.#have[part] === have) continue;
      this.#have[part] = have;
      if (have === 1) this.listener?.partArrived(part);
      else this.listener?.partLost(part);
    }
  }

  /** Takes over contents that the store has already under these digests. */
  async adopt(found: { content: number; digest: Buffer }[]): Promise<void> {
    const fresh = found.filter(
      ({ content, digest }) => this.#ready[content] === 0 && this.#store.contents.claim(digest),
    );
    if (fresh.length === 0) return;
    for (const { content, digest } of fresh) this.#digests.set(content, digest);
    await this.#digests.write(fresh.map(({ content }) => content));
    for (const { content } of fresh) await this.#dropPartial(content);
    this.#markReady(fresh.map(({ content }) => content));
  }

  async #dropPartial(content: number): Promise<void> {
    await this.#partials.get(content)?.discard();
    this.#partials.delete(content);
  }

  /**
   * Takes verified parts in. What has arrived already is left out, so a frame may come twice.
   * @throws the errno of a write that failed; WrongContentError
   */
  async store(parts: DecodedPart[]): Promise<void> {
    const missing = parts.filter(({ part }) => this.#have[part] === 0);
    const small = missing.filter(({ content }) => !this.#isLarge(content));
    const large = missing.filter(({ content }) => this.#isLarge(content));
    await this.#storeSmall(small);
    for (const [content, group] of groupBy(large, ({ content }) => content)) {
      await this.#oneByOne(content, () => this.#storeLarge(group));
    }
  }

  /** Runs writes of one large content one after the other; the parts of others do not wait. */
  #oneByOne(content: number, write: () => Promise<void>): Promise<void> {
    const before = this.#queues.get(content) ?? Promise.resolve();
    const running = before.then(write);
    // The chain only orders; who asked for a write gets its error.
    const settled = running
      .catch(() => undefined)
      .then(() => {
        if (this.#queues.get(content) === settled) this.#queues.delete(content);
      });
    this.#queues.set(content, settled);
    return running;
  }

  async #storeSmall(parts: DecodedPart[]): Promise<void> {
    if (parts.length === 0) return;
    await this.#store.contents.put(
      parts.map(({ contentDigest, data }) => ({ hex: contentDigest.toString('hex'), data })),
    );
    for (const { content, contentDigest } of parts) this.#digests.set(content, contentDigest);
    const contents = parts.map(({ content }) => content);
    await this.#digests.write(contents);
    this.#markReady(contents);
  }

  /** Parts of one large content. */
  async #storeLarge(arrived: DecodedPart[]): Promise<void> {
    const parts = arrived.filter(({ part }) => this.#have[part] === 0);
    if (parts.length === 0) return;
    const { content, contentDigest } = parts[0]!;
    if (this.#store.contents.has(contentDigest)) {
      return this.adopt([{ content, digest: contentDigest }]);
    }
    const at = content * 32;
    const slots = this.#digests.slots;
    if (!isZero(slots, at) && contentDigest.compare(slots, at, at + 32) !== 0) {
      // One of the two digests is false, and nobody can tell which: all of its parts come again.
      await this.#dropPartial(content);
      return this.#beginAgain(content);
    }
    const partial = this.#partial(content);
    await partial.write(parts);
    this.#digests.set(content, contentDigest);
    for (const { part, partDigest } of parts) this.#parts.set(part, partDigest);
    await this.#digests.write([content]);
    await this.#parts.write(parts.map(({ part }) => part));
    // It may have become whole by another way (adopt) meanwhile.
    if (this.#ready[content] === 1) return partial.discard();
    this.#markParts(parts.map(({ part }) => part));
    if (this.#hasAllParts(partial)) await this.#finish(content);
  }

  #hasAllParts({ facts: { firstPart, parts } }: PartialContent): boolean {
    return this.#have.subarray(firstPart, firstPart + parts).every((have) => have === 1);
  }

  /** Verifies a content whose parts are all there, and puts it among the others. */
  async #finish(content: number): Promise<void> {
    const partial = this.#partial(content);
    const at = content * 32;
    const hex = this.#digests.slots.toString('hex', at, at + 32);
    if (await partial.finish(hex, this.#store.contents)) return this.#markReady([content]);
    this.#partials.delete(content);
    return this.#beginAgain(content);
  }

  /** Nothing of the content counts any more; reads of it fail until it is back. */
  async #beginAgain(content: number): Promise<never> {
    this.#digests.set(content, Buffer.alloc(32));
    await this.#digests.write([content]);
    this.#setParts(content, 0);
    // Their file is gone, and another one begins with holes.
    this.#template.forget(Uint32Array.of(content));
    this.#bar([content]);
    throw new WrongContentError(content, this.#toc.path(this.#toc.firstRow(content)));
  }

  #bar(contents: number[]): void {
    if (contents.length === 0) return;
    for (const content of contents) this.#barred.add(content);
    this.#template.markFailed(Uint32Array.from(contents), constants.errno.EIO);
  }

  /** Finishes contents whose parts are all there but whose finish failed before (a full disk). */
  async finishRest(): Promise<void> {
    for (const [content, partial] of this.#partials) {
      await this.#oneByOne(content, async () => {
        if (this.#ready[content] === 0 && this.#hasAllParts(partial)) await this.#finish(content);
      });
    }
  }

  /**
   * Contents of the store were found damaged and are gone: those of this image are missing again,
   * and reads of them fail until they are back.
   * @returns content indexes
   */
  lose(hexes: Set<string>): number[] {
    const lost: number[] = [];
    for (let c = 0; c < this.#ready.length; c++) {
      if (this.#ready[c] === 0) continue;
      if (!hexes.has(this.#digests.slots.toString('hex', c * 32, c * 32 + 32))) continue;
      this.#ready[c] = 0;
      this.#readyCount--;
      this.#setParts(c, 0);
      lost.push(c);
    }
    this.#bar(lost);
    return lost;
  }

  /** Closes the slot files. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= Promise.all([this.#digests.close(), this.#parts.close()]).then(
      () => undefined,
    );
    return this.#closing;
  }
}

function groupBy<T>(items: T[], key: (item: T) => number): Map<number, T[]> {
  const groups = new Map<number, T[]>();
  for (const item of items) {
    const group = groups.get(key(item));
    if (group === undefined) groups.set(key(item), [item]);
    else group.push(item);
  }
  return groups;
}
