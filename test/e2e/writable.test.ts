// Every clause of docs/SEMANTICS.md that is a script of system calls, on a plain directory (which shows
// that the script asks for what other filesystems do) and on writable mounts.
import anyTest, { type TestFn } from 'ava';
import { Stage } from '../lib/stage.ts';
import { CLAUSES } from '../posix/clauses/index.ts';
import { clauseImage, type Prepared, runClause } from '../posix/conformance.ts';
import type { Subject } from '../posix/script.ts';
import {
  closeSubject,
  openSubject,
  otherFilesystem,
  serveTar,
  wantedSubjects,
} from '../posix/subject.ts';

const test = anyTest as TestFn<{ stage: Stage; prepared: Map<Subject, Prepared> }>;
const SUBJECTS = wantedSubjects();
let stage: Stage;
const prepared = new Map<Subject, Prepared>();

test.before(async () => {
  stage = await Stage.create({ name: 'writable' });
  const tar = await clauseImage(CLAUSES, stage.dir);
  await serveTar(stage, tar, 'clauses:1');
  const other = await otherFilesystem(stage);
  for (const subject of SUBJECTS) {
    const directory = await openSubject(stage, subject, tar, 'clauses:1');
    prepared.set(subject, { subject, directory, other });
  }
});

test.after.always(async (t) => {
  for (const { subject, directory } of prepared.values()) {
    await closeSubject(stage, subject, directory);
  }
  if (prepared.size < SUBJECTS.length) t.log(await stage.evidence());
  await stage.close();
});

for (const subject of SUBJECTS) {
  for (const clause of CLAUSES) {
    test.serial(`${subject}: ${clause.id} ${clause.title}`, async (t) => {
      t.deepEqual(await runClause(clause, prepared.get(subject)!), []);
    });
  }
}
