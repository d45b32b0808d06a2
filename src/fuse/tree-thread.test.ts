// Beginning and end of the tree's thread and of its mounts, with a thread that answers as it is told.
// The real one runs in test/e2e.
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import type { SessionRequest } from '../tree/session.ts';
import type { Template } from '../tree/template.ts';
import { TreeLink } from './tree-link.ts';
import type { AttachRequest, FromTree, ToTree } from './tree-messages.ts';
import { TreeThread, type TreeWorker } from './tree-thread.ts';
import { COUNTER } from './upcalls.ts';

/** A thread that notes what it is told, and answers by hand. */
class Told {
  readonly sent: ToTree[] = [];
  referenced = true;
  readonly #listeners = new Map<string, ((value: never) => void)[]>();
  postMessage(message: ToTree): void {
    this.sent.push(message);
  }
  on(event: string, listener: (value: never) => void): void {
    this.#listeners.set(event, [...(this.#listeners.get(event) ?? []), listener]);
  }
  emit(event: string, value: unknown): void {
    for (const listener of this.#listeners.get(event) ?? []) listener(value as never);
  }
  answer(error?: FromTree['error']): void {
    this.emit('message', { id: this.sent.at(-1)!.id, error });
  }
  ref(): void {
    this.referenced = true;
  }
  unref(): void {
    this.referenced = false;
  }
  terminate = async () => 0;
}

function world() {
  const workers: Told[] = [];
  const thread = new TreeThread(() => {
    const worker = new Told();
    workers.push(worker);
    return worker as unknown as TreeWorker;
  });
  const died: string[] = [];
  const attach = (channel: number) =>
    thread.attach({ channel } as AttachRequest, (error) => died.push(`${channel}: ${error}`));
  return { thread, workers, died, attach };
}

test('one thread for all mounts, which keeps no process alive when it has none', async (t) => {
  const { thread, workers, attach } = world();
  const first = attach(1);
  workers[0]!.answer();
  await first;
  const second = attach(2);
  workers[0]!.answer();
  await second;
  t.is(workers.length, 1);
  t.deepEqual(
    workers[0]!.sent.map(({ request }) => request.do),
    ['attach', 'attach'],
  );
  const gone = thread.detach(1);
  workers[0]!.answer();
  await gone;
  t.true(workers[0]!.referenced);
  const last = thread.detach(2);
  workers[0]!.answer();
  await last;
  t.false(workers[0]!.referenced);
  // Twice is once.
  await thread.detach(2);
  const again = attach(3);
  t.true(workers[0]!.referenced);
  workers[0]!.answer();
  await again;
  t.is(workers.length, 1);
});

test('a tree that cannot be opened is an error in its own words', async (t) => {
  const { workers, attach } = world();
  const attached = attach(1);
  workers[0]!.answer({ kind: 'corrupt', message: 'upper is odd', hint: 'remove it' });
  const error = await t.throwsAsync<FirstlightError>(attached, { instanceOf: FirstlightError });
  t.is(error?.kind, 'corrupt');
  t.is(error?.line, 'upper is odd; remove it');
  t.false(workers[0]!.referenced);
});

test('mounts and requests hear of a thread that dies, and the next mount gets a new one', async (t) => {
  const { workers, attach, died } = world();
  const first = attach(1);
  workers[0]!.answer();
  await first;
  const second = attach(2);
  workers[0]!.emit('error', new Error('out of memory'));
  workers[0]!.emit('exit', 1);
  await t.throwsAsync(second, { message: /died: out of memory/ });
  t.deepEqual(died.length, 2);
  t.regex(died[0]!, /^1: .*died: out of memory/);
  const third = attach(3);
  t.is(workers.length, 2);
  workers[1]!.answer();
  await third;
});

test('a link opens the tree of its mount, sees its counters, and waits for its end', async (t) => {
  const { thread, workers } = world();
  const places = { tocPath: '/toc' };
  const template = { places, digest: 'sha256:x' } as unknown as Template;
  const writable = { upper: '/s/upper', work: '/s/work' };
  const request = { mountPoint: '/mnt', writable, onClosed: () => {} } as unknown as SessionRequest;
  const link = new TreeLink(template, request, thread);
  const opened = link.open(4);
  workers[0]!.answer();
  await opened;
  const { request: sent } = workers[0]!.sent[0]!;
  if (sent.do !== 'attach') return t.fail('the first message attaches');
  t.like(sent.request, { channel: 4, digest: 'sha256:x', places, ...writable, mountPoint: '/mnt' });
  new Float64Array(sent.request.counters)[COUNTER.waits] = 12;
  t.deepEqual(link.stats(), { upcalls: 0, waits: 12, failures: 0 });
  const error = await t.throwsAsync<FirstlightError>(link.closed());
  t.is(error?.kind, 'busy');
  const closed = link.close(4);
  workers[0]!.answer();
  await closed;
  await link.closed();
});
