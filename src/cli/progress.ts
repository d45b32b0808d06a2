// Progress bars on a terminal (cli-progress). Only loaded where there is one.
import { MultiBar, Presets, SingleBar } from 'cli-progress';
import type { MountStatus } from '../daemon/control.ts';
import { formatBytes } from './print.ts';

/** One bar for each mount: how much of its image has arrived. */
export class TransferBar {
  readonly #bars = new MultiBar(
    {
      format: '{bar} {percentage}% {done} of {all}  {rate}  {image} {state}',
      hideCursor: true,
      clearOnComplete: false,
      stream: process.stderr,
      forceRedraw: true,
    },
    Presets.shades_grey,
  );
  readonly #byId = new Map<string, { bar: SingleBar; last: number; at: number; rate: number }>();

  /** Shows the latest state of the mounts. */
  update(mounts: MountStatus[]): void {
    for (const mount of mounts) {
      const { bytes, bytesDone, state } = mount.transfer;
      let entry = this.#byId.get(mount.id);
      if (entry === undefined) {
        const bar = this.#bars.create(Math.max(bytes, 1), 0, {});
        entry = { bar, last: bytesDone, at: Date.now(), rate: 0 };
        this.#byId.set(mount.id, entry);
      }
      const now = Date.now();
      if (now - entry.at > 200) {
        const rate = ((bytesDone - entry.last) * 1000) / (now - entry.at);
        // Smoothed over about a second, so that it can be read.
        entry.rate = entry.rate === 0 ? rate : entry.rate * 0.7 + rate * 0.3;
        entry.last = bytesDone;
        entry.at = now;
      }
      entry.bar.setTotal(Math.max(bytes, 1));
      entry.bar.update(bytes === 0 ? 1 : bytesDone, {
        done: formatBytes(bytesDone),
        all: formatBytes(bytes),
        rate: state === 'receiving' ? `${formatBytes(entry.rate)}/s` : '',
        image: mount.image,
        state: state === 'receiving' ? '' : state,
      });
    }
  }

  stop(): void {
    this.#bars.stop();
  }
}

/** One bar for bytes that go up. */
export class ByteBar {
  readonly #bar: SingleBar;

  constructor(label: string) {
    this.#bar = new SingleBar(
      {
        format: `${label} {bar} {percentage}% {done} of {all}  {note}`,
        hideCursor: true,
        stream: process.stderr,
      },
      Presets.shades_grey,
    );
    this.#bar.start(1, 0, { done: '', all: '', note: '' });
  }

  update(doneBytes: number, totalBytes: number, note = ''): void {
    this.#bar.setTotal(Math.max(totalBytes, 1));
    this.#bar.update(totalBytes === 0 ? 0 : doneBytes, {
      done: formatBytes(doneBytes),
      all: formatBytes(totalBytes),
      note,
    });
  }

  stop(): void {
    this.#bar.stop();
  }
}
