// The immutable tree of one image, shared by every mount of it: the flat TOC for TypeScript, and its
// native twin that answers the kernel. What does not live here: entries (entry.ts), and the
// transfer that makes contents ready (receive/).
import type { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import { addonError, type NativeTemplate, native, type TemplateOptions } from '../native/index.ts';
import type { StoredImage } from '../store/image.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { partialPrefix } from '../store/layout.ts';
import { ArrivalWatch } from './arrivals.ts';
import { ContentStates } from './content-states.ts';
import { TemplateEntry } from './entry.ts';

/** What keeps up with the contents' arrival somewhere else, such as in another process. */
export type ContentMarks = Pick<
  NativeTemplate,
  'markReady' | 'markParts' | 'markFailed' | 'clearFailed' | 'forget'
>;

/** Somebody else who is told the marks. */
export interface Follower extends ContentMarks {
  /** Number of requests that wait there, which the template's own twins do not see. */
  waiting?(): number;
}

/** Makes the native twin; tests give one that watches. */
export type NativeTemplateFactory = (options: TemplateOptions) => NativeTemplate;

/** A template with a count of its users; the last one closes the native twin. */
export class Template {
  /** Manifest digest of the image. */
  readonly digest: string;
  readonly toc: Toc;
  /** What native sessions answer from; where the addon cannot be loaded, `states` itself. */
  readonly native: NativeTemplate;
  /** The same marks for readers in JavaScript: the portable session. */
  readonly states: ContentStates;
  /** Where the contents' bytes stand; undefined for a template that was not opened from a store. */
  readonly places: TemplateOptions | undefined;
  /** Digests of the contents, 32 bytes a slot; undefined where they are in no file. */
  readonly digestsPath: string | undefined;
  #users = 1;
  readonly #watches = new Set<ArrivalWatch>();
  readonly #followers = new Set<Follower>();
  readonly #completeWatches = new Set<() => void>();

  /** @param twin  undefined: `states` stands for it */
  constructor(
    digest: string,
    toc: Toc,
    twin: NativeTemplate | undefined,
    digestsPath?: string,
    places?: TemplateOptions,
  ) {
    this.digest = digest;
    this.toc = toc;
    this.states = new ContentStates(toc);
    this.native = twin ?? this.states;
    this.digestsPath = digestsPath;
    this.places = places;
  }

  /**
   * The template of an image in the store. The caller holds its first use.
   * @param toc  the image's TOC, checked
   */
  static open(
    store: LayerStore,
    image: StoredImage,
    toc: Toc,
    make: NativeTemplateFactory | undefined = nativeTwins(),
  ): Template {
    const places: TemplateOptions = {
      tocPath: image.path('toc'),
      digestsPath: image.path('contents'),
      contentDir: store.layout.content,
      incomingDir: store.layout.incoming,
      partialPrefix: partialPrefix(image.digest),
    };
    return new Template(image.digest, toc, make?.(places), places.digestsPath, places);
  }

  /** The root directory. */
  get root(): TemplateEntry {
    return new TemplateEntry(this.toc, 0);
  }

  /** Marks whole contents readable, and tells those who watch. */
  markReady(contents: Uint32Array): void {
    this.#all((twin) => twin.markReady(contents));
    if (this.#watches.size === 0) return;
    const nowMs = performance.now();
    for (const watch of this.#watches) watch.note(contents, nowMs);
  }

  /** Marks arrived parts (numbers through all contents) readable. */
  markParts(parts: Uint32Array): void {
    this.#all((twin) => twin.markParts(parts));
  }

  /** Marks contents failed: what waits for them, and every later read, ends with `errno` (positive). */
  markFailed(contents: Uint32Array, errno: number): void {
    this.#all((twin) => twin.markFailed(contents, errno));
  }

  /** Failed contents are waited for again. */
  clearFailed(contents: Uint32Array): void {
    this.#all((twin) => twin.clearFailed(contents));
  }

  /** Nothing is there of the contents any more: reads of them wait. */
  forget(contents: Uint32Array): void {
    this.#all((twin) => twin.forget(contents));
  }

  /** Number of requests that wait for contents now, through all sessions. */
  waiting(): number {
    let waiting = 0;
    this.#both((twin) => {
      waiting += twin.waiting();
    });
    for (const follower of this.#followers) waiting += follower.waiting?.() ?? 0;
    return waiting;
  }

  #both(mark: (twin: NativeTemplate) => void): void {
    mark(this.native);
    if (this.native !== this.states) mark(this.states);
  }

  #all(mark: (marks: ContentMarks) => void): void {
    const { complete } = this.states;
    this.#both(mark);
    for (const follower of this.#followers) mark(follower);
    if (complete === this.states.complete) return;
    for (const changed of this.#completeWatches) changed();
  }

  /** True where every content can be read. */
  get complete(): boolean {
    return this.states.complete;
  }

  /** Tells each change of `complete` from now on until released. */
  watchComplete(changed: () => void): () => void {
    this.#completeWatches.add(changed);
    return () => this.#completeWatches.delete(changed);
  }

  /** Gives somebody else the present state of all contents, and every mark from now on until released. */
  follow(follower: Follower): () => void {
    this.states.replay(follower);
    this.#followers.add(follower);
    return () => this.#followers.delete(follower);
  }

  /** Notes arrivals from now on; end it with `unwatchArrivals`. */
  watchArrivals(): ArrivalWatch {
    const watch = new ArrivalWatch(this.toc.contents);
    this.#watches.add(watch);
    return watch;
  }

  unwatchArrivals(watch: ArrivalWatch): void {
    this.#watches.delete(watch);
  }

  /** One more user. */
  retain(): this {
    if (this.#users === 0) throw new FirstlightError('internal', 'the template is closed');
    this.#users++;
    return this;
  }

  /** One user less; the last closes the native twin, which no session may use then. */
  release(): void {
    if (this.#users === 0) throw new FirstlightError('internal', 'the template is closed already');
    if (--this.#users === 0) this.native.close();
  }
}

/** Makes twins in the addon; undefined where it cannot be loaded. */
function nativeTwins(): NativeTemplateFactory | undefined {
  if (addonError() !== undefined) return undefined;
  return (options) => new (native().Template)(options);
}
