// Random operations on a random image, on the tree and on a plain model: the same errnos, the same tree
// after each batch, the same inode numbers from the first to the last moment, a new start in between
// included. What native answers without the tree is checked too: whatever was not thawed must be as
// the image has it.
//
// A failure prints its seed; FIRSTLIGHT_SEED=N runs that one again, FIRSTLIGHT_MODEL_RUNS=N makes as many runs.
import { closeSync } from 'node:fs';
import ava from 'ava';
import fc from 'fast-check';
import { AS_ROOT } from './testing.ts';
import { image, operation } from './testing-operations.ts';
import { Run } from './testing-run.ts';

const test = AS_ROOT ? ava : ava.skip;
const RUNS = Number(process.env.FIRSTLIGHT_MODEL_RUNS ?? 60);

test('random operations leave what a plain model has', async (t) => {
  t.timeout(600_000);
  const seed = Number(process.env.FIRSTLIGHT_SEED ?? Date.now() & 0x7fffffff);
  t.log(`FIRSTLIGHT_SEED=${seed}`);
  let operations = 0;
  const property = fc.asyncProperty(
    image,
    fc.array(operation, { maxLength: 120, size: 'max' }),
    async (spec, all) => {
      const run = new Run(spec);
      try {
        let step = 0;
        for (const next of all) {
          await run.apply(next);
          if (++step % 10 === 0) run.compare();
        }
        run.compare();
        await run.reopen();
        run.compare();
      } finally {
        operations += run.done;
        for (const { fd } of run.held) if (fd >= 0) closeSync(fd);
        run.stage.remove();
      }
    },
  );
  const result = await fc.check(property, { numRuns: RUNS, seed });
  if (result.failed) t.log(fc.stringify(result.counterexample), result.errorInstance);
  t.false(result.failed);
  t.log(`${operations} operations`);
});
