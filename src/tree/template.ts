// The immutable tree of one image, shared by every mount of it: the flat TOC for TypeScript, and its
// native twin that answers the kernel. What does not live here: entries (entry.ts), and the
// transfer that makes contents ready (receive/).
import type { Toc } from '../delta/toc.ts';
import { FirstlightError } from '../errors/errors.ts';
import { type NativeTemplate, native, type TemplateOptions } from '../native/index.ts';
import type { StoredImage } from '../store/image.ts';
import type { LayerStore } from '../store/layer-store.ts';
import { partialPrefix } from '../store/layout.ts';
import { ArrivalWatch } from './arrivals.ts';
import { TemplateEntry } from './entry.ts';

/** Makes the native twin; tests give one that watches. */
export type NativeTemplateFactory = (options: TemplateOptions) => NativeTemplate;

/** A template with a count of its users; the last one closes the native twin. */
export class Template {
  /** Manifest digest of the image. */
  readonly digest: string;
  readonly toc: Toc;
  readonly native: NativeTemplate;
  /** Digests of the contents, 32 bytes a slot; undefined where they are in no file. */
  readonly digestsPath: string | undefined;
  #users = 1;
  readonly #watches = new Set<ArrivalWatch>();

  constructor(digest: string, toc: Toc, nativeTemplate: NativeTemplate, digestsPath?: string) {
    this.digest = digest;
    this.toc = toc;
    this.native = nativeTemplate;
    this.digestsPath = digestsPath;
  }

  /**
   * The template of an image in the store. The caller holds its first use.
   * @param toc  the image's TOC, checked
   */
  static open(
    store: LayerStore,
    image: StoredImage,
    toc: Toc,
    make: NativeTemplateFactory = (options) => new (native().Template)(options),
  ): Template {
    const twin = make({
      tocPath: image.path('toc'),
      digestsPath: image.path('contents'),
      contentDir: store.layout.content,
      incomingDir: store.layout.incoming,
      partialPrefix: partialPrefix(image.digest),
    });
    return new Template(image.digest, toc, twin, image.path('contents'));
  }

  /** The root directory. */
  get root(): TemplateEntry {
    return new TemplateEntry(this.toc, 0);
  }

  /** Marks whole contents readable, and tells those who watch. */
  markReady(contents: Uint32Array): void {
    this.native.markReady(contents);
    if (this.#watches.size === 0) return;
    const nowMs = performance.now();
    for (const watch of this.#watches) watch.note(contents, nowMs);
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
