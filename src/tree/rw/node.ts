// What the tree keeps of files that have diverged from the template, or were about to: directories
// and everything else. What does not live here: their attributes, which upper/ and the TOC have.
import { FIRST_OWN_NODE } from '../../native/upcalls.ts';
import { Names, type Slot } from './names.ts';

/** Where the inode of a file is. */
export type FileState =
  /** As in the image; only its number of names may be another. */
  | 'template'
  /** In upper/, under `places`. */
  | 'upper'
  /** Without a name; its content and attributes are the image's. */
  | 'removed-template'
  /** Without a name; `fd` holds it for those who have it open, or nobody has and only `last` is left. */
  | 'removed-upper';

/** Anything that is no directory. One object an inode, whatever number of names it has. */
export class FileNode {
  /** The present one; a node that was renumbered is also found under its former id. */
  id: number;
  /** st_ino, for good. */
  readonly ino: number;
  /** Row of the template's inode, or -1. */
  readonly row: number;
  state: FileState;
  /** Its names in upper/. */
  readonly places = new Set<Slot>();
  /** Names that are left in the template, of one in state 'template'. */
  templateNames: number;
  /** Lookups of the present id that the kernel holds; counted for own ids only. */
  lookups = 0;
  /** O_PATH descriptor of one without a name, or -1. */
  fd = -1;
  /** Attributes of one without a name and descriptor. */
  last: Float64Array | undefined;
  /**
   * What open handles read: as long as there is one, all further ones have to read the same. A file in
   * upper/ that is still read from the template was never open for writing: both are equal.
   */
  backing: 'template' | 'upper';
  /** The kernel may keep its attributes without an end. */
  cached = false;
  /** Whether a write takes setuid, setgid or capabilities away; undefined: not looked yet. */
  privileged: boolean | undefined;
  /**
   * It was opened to be read and written, so a shared mapping may change it, which outlives the descriptor
   * without the session hearing of it.
   */
  mayBeMapped = false;
  /** The name that promotion gave it is on the disk, or (an error, for the next who asks) could not be put there. */
  nameLasts: boolean | Error = false;
  /** How often an open for writing has waited for readers of the template that may be gone. */
  releaseTries = 0;
  /** How often the tree has opened it for reading. */
  opensForReading = 0;
  /** When its number of names in the template became smaller, ms since 1970; 0: never. */
  changedMs = 0;

  constructor(id: number, ino: number, row: number, state: FileState, templateNames = 0) {
    this.id = id;
    this.ino = ino;
    this.row = row;
    this.state = state;
    this.templateNames = templateNames;
    this.backing = state === 'template' ? 'template' : 'upper';
  }

  /** Some name in upper/; only of one in state 'upper'. */
  get place(): Slot {
    for (const slot of this.places) return slot;
    throw new Error(`node ${this.id} has no name in upper/`);
  }

  get removed(): boolean {
    return this.state === 'removed-template' || this.state === 'removed-upper';
  }
}

/** A directory of the merged view. */
export class Directory {
  readonly id: number;
  readonly ino: number;
  /** Row of the template's directory that is merged into it, or -1. */
  row: number;
  /** Where it stands now; the root is its own parent. */
  parent: Directory;
  name: string;
  /** There is a directory for it in upper/. */
  upper: boolean;
  /** It has trusted.overlay.redirect. */
  redirected = false;
  /** It has trusted.overlay.opaque. */
  opaque = false;
  /** Ends the session's answering for it; set as long as that does (adopted.ts). */
  disown: (() => void) | undefined;
  /** How often the tree was asked for its attributes since the session answered for it last. */
  asked = 0;
  /** Whether it has a default ACL; undefined: not asked yet. */
  defaultAcl: boolean | undefined;
  lookups = 0;
  /** Attributes of a removed one; nobody can enter it any more. */
  last: Float64Array | undefined;
  #subdirectories = 0;
  #names: Names | undefined;

  constructor(id: number, ino: number, row: number, parent: Directory | undefined, name: string) {
    this.id = id;
    this.ino = ino;
    this.row = row;
    this.parent = parent ?? this;
    this.name = name;
    this.upper = row < 0;
  }

  get removed(): boolean {
    return this.last !== undefined;
  }

  /** Subdirectories in the merged view, which upper/ does not show. */
  get subdirectories(): number {
    return this.#subdirectories;
  }

  set subdirectories(count: number) {
    this.disown?.();
    this.#subdirectories = count;
  }

  get names(): Names {
    this.#names ??= new Names();
    return this.#names;
  }

  /** Slot of a name, without making room for any. */
  slot(name: string): Slot | undefined {
    return this.#names?.get(name);
  }

  /** Nothing of the template shows in it from now on, and nothing covers that. */
  unmerge(): void {
    this.row = -1;
    this.redirected = false;
    this.opaque = true;
    this.#names = undefined;
  }

  *slots(): Generator<Slot> {
    if (this.#names !== undefined) yield* this.#names.values();
  }
}

export type Node = Directory | FileNode;

/** True for ids that the tree gave. */
export function isOwn(id: number): boolean {
  return id >= FIRST_OWN_NODE;
}
