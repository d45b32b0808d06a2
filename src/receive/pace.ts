// How far ahead a stream asks, and when it is better left: by how fast it comes, and how long a request takes. What does
// not live here: the measuring (rate-meter.ts), the stream (frame-stream.ts).
import { RateMeter } from './rate-meter.ts';

/**
 * An answer that is under way is read on over frames that are here already up to this many bytes: leaving it
 * breaks the connection off, and the next one pays for its set-up and slow start (about a
 * second for 4 MB at 150 ms and 100 Mbit/s).
 */
const LEAVE_BYTES = 4 << 20;

/** What is to be under way while nothing has been measured, and at least. */
const SOON_BYTES = { unmeasured: 1 << 20, least: 128 << 10 };
/**
 * The stream has as much under way as the line brings in this many round trips, and in so many ms
 * more in which a busy processor may come too late to ask. Less leaves the line empty; more keeps a reader waiting
 * for what stands behind it, and lets a line that has become faster show it no sooner.
 */
const SOON = { roundTrips: 1.5, slackMs: 50 };

/** The pace of one transfer's streams. */
export class Pace {
  readonly rate = new RateMeter();
  readonly #roundTripMs: () => number | undefined;

  /** @param roundTripMs  shortest one so far, in ms; undefined where none is known */
  constructor(roundTripMs: () => number | undefined) {
    this.#roundTripMs = roundTripMs;
  }

  /** Bytes that the stream brings in about the time that another request would take. */
  get soonBytes(): number {
    const { bytesPerMs } = this.rate;
    const roundTripMs = this.#roundTripMs();
    if (bytesPerMs === undefined || roundTripMs === undefined) return SOON_BYTES.unmeasured;
    const ms = SOON.roundTrips * roundTripMs + SOON.slackMs;
    return Math.max(SOON_BYTES.least, bytesPerMs * ms);
  }

  /** Bytes that the line brings while a new connection gets up to speed: four round trips. */
  get leaveBytes(): number {
    const roundTripMs = this.#roundTripMs();
    return Math.max(LEAVE_BYTES, (this.rate.bytesPerMs ?? 0) * (roundTripMs ?? 0) * 4);
  }
}
