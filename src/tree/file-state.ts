// Where a file's content is, as one mount sees it, and the only function that moves it. Native
// keeps the same numbers for the contents of a template (native/index.ts: CONTENT_STATE).

/** States of a file; the numbers are Starlight's, Failed is ours. */
export const FileState = {
  /** Nothing has arrived. An open waits, or gets the error of Failed. */
  Empty: 0,
  /** Some parts have arrived; they are readable, the others are waited for. */
  Partial: 1,
  /** The whole content stands in the store, verified, shared and read-only. */
  RoLayer: 2,
  /** The file has been promoted: its content is this mount's own, in the RW layer. Final. */
  RwLayer: 3,
  /** The content cannot be had at present; reads end with an errno at once. */
  Failed: 4,
} as const;

export type FileState = (typeof FileState)[keyof typeof FileState];

/** What can happen to a file's content. */
export type FileEvent =
  /** One more part has been verified and stored, and others are missing. */
  | 'part'
  /** The content is whole and verified. */
  | 'complete'
  /** It cannot be had: no space, a broken disk, a bundle that is wrong again and again. */
  | 'failed'
  /** The cause of the failure is gone; `part` or `complete` follow for what had arrived. */
  | 'mended'
  /** The content on disk was found damaged and has been taken away. */
  | 'lost'
  /** Copied to the RW layer, or truncated there without a copy. */
  | 'promoted';

const { Empty, Partial, RoLayer, RwLayer, Failed } = FileState;

const NEXT: Record<FileState, { [event in FileEvent]?: FileState }> = {
  [Empty]: { part: Partial, complete: RoLayer, failed: Failed, promoted: RwLayer },
  [Partial]: { part: Partial, complete: RoLayer, failed: Failed, lost: Empty, promoted: RwLayer },
  [RoLayer]: { complete: RoLayer, lost: Empty, promoted: RwLayer },
  [RwLayer]: { part: RwLayer, complete: RwLayer, failed: RwLayer, mended: RwLayer, lost: RwLayer },
  [Failed]: { failed: Failed, mended: Empty, complete: RoLayer, promoted: RwLayer },
};

/**
 * The state after an event, or undefined where the event cannot happen in that state: a bug of the
 * caller. What the store does no longer matters to a promoted file, so RwLayer takes every event of
 * the store and stays.
 */
export function transition(from: FileState, event: FileEvent): FileState | undefined {
  return NEXT[from][event];
}
