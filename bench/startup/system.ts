// What a way of starting containers has to offer to be measured: the interface between the bench
// (startup.ts) and the systems beside this file. A further system (another lazy snapshotter, another
// container engine) is one more file that implements it, and a line in systems.ts; it says by
// `missing` which program it does not find on PATH, and is left out then.
import type { ChildProcess } from 'node:child_process';
import type { Service, ServiceVersion } from '../images/services.ts';

/** What is started, and from where. */
export type Mode =
  /** The worker has nothing; the new version is wanted. */
  | 'deploy'
  /** The worker has the old version, complete and at rest; the new one is wanted. */
  | 'update'
  /** The worker has the new version complete: the lower bound. */
  | 'local';

/** One service in its two versions. */
export interface PreparedService {
  service: Service;
  /** OCI layouts, tag `latest`. */
  layouts: Record<ServiceVersion, string>;
}

/** What `start` has started. */
export interface Start {
  /** Its output is where a service prints its ready line. */
  child: ChildProcess;
  /** When the command was given, ms since 1970. */
  startedAt: number;
}

/** Moments of one start, ms since the command; only what a system can tell. */
export type Breakdown = Record<string, number>;

/** One way to start a container whose image is far away. */
export interface System {
  /** As tables and files name it. */
  readonly name: string;
  readonly modes: readonly Mode[];
  /** Version of its programs, for the results. */
  version(): string;
  /** Puts the images at the server's end of the link, in the form this system reads. Not timed. */
  publish(services: PreparedService[]): Promise<void>;
  /**
   * Brings the worker into the state of a mode. Afterwards the kernel's caches are dropped, so what
   * has to be in memory again is loaded by `warmUp`.
   */
  prepare(service: PreparedService, mode: Mode): Promise<void>;
  /** Loads programs at the worker and served files at the server into memory again. */
  warmUp(service: PreparedService, mode: Mode): Promise<void>;
  /** Gives the command, up to the container's own first process. Timed from here on. */
  start(service: PreparedService, mode: Mode): Promise<Start>;
  /** When what was started is done, ms since 1970, where that is not when the service is ready. */
  done?(start: Start): Promise<number>;
  /** Asked once the service is ready. */
  breakdown(start: Start): Promise<Breakdown>;
  /** Ends the container and whatever goes on behind it. */
  stop(start: Start): Promise<void>;
}
