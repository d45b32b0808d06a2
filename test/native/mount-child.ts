// The process that holds the mount in native tests: loads the addon, does what its parent says over
// the IPC channel, and never touches its own mount. The parent does the file operations.
import type { NativeSession, NativeTemplate, Opens } from '../../src/native/index.ts';
import { native } from '../../src/native/index.ts';
import { ToyTree } from './toy-tree.ts';

/** What the child needs to mount; `mounts` share one template. */
export interface MountRequest {
  toc: string;
  digests: string;
  contentDir: string;
  incomingDir: string;
  partialPrefix: string;
  mounts: {
    mountPoint: string;
    source?: string;
    threads?: number;
    waitTimeoutMs?: number;
    passthrough?: boolean;
    tracing?: boolean;
    opens?: Opens;
    /** Directory of a ToyTree's files; the mount is writable then. */
    upper?: string;
  }[];
}

export type Command =
  | { do: 'mount'; request: MountRequest }
  | { do: 'markReady' | 'markParts' | 'clearFailed'; indexes: number[] }
  | { do: 'markFailed'; indexes: number[]; errno: number }
  | { do: 'state'; content: number }
  | { do: 'waiting' | 'closeTemplate' | 'events' | 'usage' | 'probe' }
  /** Has no answer: one that is on its way when the process ends may come or not. */
  | { do: 'exit' }
  | { do: 'unmount'; mount: number; detach: boolean }
  | { do: 'abort' | 'stats' | 'takeTrace'; mount: number }
  | { do: 'watchOpens' | 'unwatchOpens' | 'forgetReads'; mount: number }
  | { do: 'setTracing'; mount: number; on: boolean }
  | { do: 'setOpens'; mount: number; opens: Opens }
  | { do: 'toy'; mount: number; call: string; args: unknown[] }
  | { do: 'loadOnly'; toc: string; digests: string; dir: string };

export type ChildEvent =
  | { event: 'wanted'; mount: number; content: number; first: number; last: number }
  | { event: 'timeout'; mount: number; content: number; waitedMs: number }
  | { event: 'closed'; mount: number; error: string | null };

let template: NativeTemplate | undefined;
const sessions: NativeSession[] = [];
const events: ChildEvent[] = [];
const toys: (ToyTree | undefined)[] = [];

async function mount(request: MountRequest): Promise<unknown> {
  template = new (native().Template)({
    tocPath: request.toc,
    digestsPath: request.digests,
    contentDir: request.contentDir,
    incomingDir: request.incomingDir,
    partialPrefix: request.partialPrefix,
  });
  const features = [];
  for (const [mount, options] of request.mounts.entries()) {
    const session = new (native().Session)(template, {
      mountPoint: options.mountPoint,
      source: options.source ?? 'firstlight-test',
      threads: options.threads ?? 0,
      waitTimeoutMs: options.waitTimeoutMs ?? 300_000,
      passthrough: options.passthrough ?? true,
      allowOther: true,
      writable: options.upper !== undefined,
      onWanted: (content, first, last) =>
        events.push({ event: 'wanted', mount, content, first, last }),
      onTimeout: (content, waitedMs) => events.push({ event: 'timeout', mount, content, waitedMs }),
      onClosed: (error) => events.push({ event: 'closed', mount, error: error ?? null }),
    });
    sessions.push(session);
    toys.push(
      options.upper === undefined
        ? undefined
        : new ToyTree(session.channel, request, options.upper, template),
    );
    if (options.tracing === true) session.setTracing(true);
    if (options.opens !== undefined) session.setOpens(options.opens);
    features.push(await session.start());
  }
  return { features, rows: template.rows, contents: template.contents, parts: template.parts };
}

async function obey(command: Command): Promise<unknown> {
  switch (command.do) {
    case 'mount':
      return mount(command.request);
    case 'markReady':
    case 'markParts':
    case 'clearFailed':
      return template![command.do](Uint32Array.from(command.indexes));
    case 'markFailed':
      return template!.markFailed(Uint32Array.from(command.indexes), command.errno);
    case 'state':
      return template!.state(command.content);
    case 'waiting':
      return template!.waiting();
    case 'closeTemplate':
      return template!.close();
    case 'events':
      return events.splice(0);
    case 'usage':
      return { rss: process.memoryUsage().rss, cpuUs: process.cpuUsage() };
    case 'probe':
      return native().probe();
    case 'unmount':
      return sessions[command.mount]!.unmount(command.detach);
    case 'abort':
      return sessions[command.mount]!.abort();
    case 'stats':
      return sessions[command.mount]!.stats();
    case 'watchOpens':
    case 'unwatchOpens':
    case 'forgetReads':
      return sessions[command.mount]![command.do]();
    case 'setTracing':
      return sessions[command.mount]!.setTracing(command.on);
    case 'setOpens':
      return sessions[command.mount]!.setOpens(command.opens);
    case 'takeTrace': {
      const { records, lost } = sessions[command.mount]!.takeTrace();
      return { records: Buffer.from(records).toString('base64'), lost };
    }
    case 'toy':
      return toys[command.mount]!.obey(command.call, command.args);
    case 'loadOnly':
      new (native().Template)({
        tocPath: command.toc,
        digestsPath: command.digests,
        contentDir: command.dir,
        incomingDir: command.dir,
        partialPrefix: 'p',
      }).close();
      return;
    case 'exit':
      // What a forgetful program does: the mount is still there.
      process.exit(0);
  }
}

process.on('message', async ({ id, command }: { id: number; command: Command }) => {
  try {
    process.send!({ id, result: (await obey(command)) ?? null });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    process.send!({ id, error: { code, message } });
  }
});
process.on('disconnect', () => process.exit(0));
process.send!({ id: 0, result: null });
