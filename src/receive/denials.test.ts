// What readers are told of contents that cannot be had for now.
import test from 'ava';
import { quietLog } from '../../test/receive/fixture.ts';
import { FirstlightError, toErrno } from '../errors/errors.ts';
import { Denials } from './denials.ts';
import type { FramePlan } from './frame-plan.ts';

/** Contents 0 to 3, of one part and one frame each, of which the first is there. */
function makeDenials() {
  const failed = new Map<number, number>();
  const template = {
    toc: { contentOfPart: (part: number) => part },
    markFailed: (contents: Uint32Array, errno: number) => {
      for (const content of contents) failed.set(content, errno);
    },
    clearFailed: (contents: Uint32Array) => {
      for (const content of contents) failed.delete(content);
    },
  };
  const arrivals = { missing: () => [1, 2, 3], isReady: (content: number) => content === 0 };
  const { log, lines } = quietLog();
  const denials = new Denials(arrivals, template as never, log);
  const plan = { partsOf: (frame: number) => [0, frame] } as unknown as FramePlan;
  const given = () => [0, 1, 2, 3].filter((content) => !failed.has(content));
  return { denials, plan, given, failed, lines };
}

const CORRUPT = new FirstlightError('corrupt', 'frame 2 is damaged');

test('what was given up stays denied when something else that stood in the way is over', (t) => {
  const { denials, plan, given, failed } = makeDenials();
  denials.gaveUp(plan, 2, CORRUPT);
  t.deepEqual(given(), [0, 1, 3]);
  denials.storeFailed(new FirstlightError('no-space', 'the disk is full'));
  t.deepEqual(given(), [0]);
  t.is(failed.get(2), toErrno(CORRUPT));
  denials.storeMended();
  // Nobody asks for it: a reader that waited for it would wait for ever.
  t.deepEqual(given(), [0, 1, 3]);
  denials.refused(new FirstlightError('unauthorized', 'no'));
  denials.accepted();
  t.deepEqual(given(), [0, 1, 3]);
  denials.forgive();
  t.deepEqual(given(), [0, 1, 2, 3]);
});

test('a refusal is logged once, until the server gives again', (t) => {
  const { denials, lines } = makeDenials();
  const refusal = new FirstlightError('unauthorized', 'no');
  t.false(denials.isRefused);
  for (let i = 0; i < 3; i++) denials.refused(refusal);
  t.true(denials.isRefused);
  denials.accepted();
  t.false(denials.isRefused);
  denials.refused(refusal);
  t.is(lines.filter(({ level }) => level === 50).length, 2);
});
