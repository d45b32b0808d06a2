// Runs clauses on a subject. What is to be there before a scenario is once made through the mount
// (fresh) and once part of the image (image), so that the same calls meet files that have been
// promoted, and files that have not. What does not live here: the clauses, and mounting.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { must } from '../lib/proc.ts';
import { Interpreter } from './interpreter.ts';
import { program } from './programs.ts';
import { type Clause, mismatch, type Origin, type Scenario, type Subject } from './script.ts';

/** Directory of a scenario, below the root of the image. */
function place(clause: Clause, index: number, origin: Origin): string {
  return `${origin}/${clause.id}-${index}`;
}

/** The scenario's directory with what has to be there before, by commands of the interpreter. */
function preparation(scenario: Scenario, directory: string): string[] {
  return [`mkdir ${directory}`, `chmod ${directory} 0777`, `cd ${directory}`, ...scenario.setup];
}

/** Whatever has been made before the mount keeps a time that no clock will show again. */
const OLD = '@946684800.123456789';

/**
 * Writes the tar of an image that holds the beginnings of all scenarios, made by GNU tar from what
 * the interpreter made in `work`.
 */
export async function clauseImage(clauses: Clause[], work: string): Promise<string> {
  const root = join(work, 'clause-root');
  await mkdir(join(root, 'image'), { recursive: true });
  await mkdir(join(root, 'fresh'));
  await mkdir(join(root, 'bin'));
  await must('cp', [await program('interpreter'), join(root, 'bin/waits')]);
  const interpreter = await Interpreter.start(root);
  try {
    for (const clause of clauses) {
      for (const [index, scenario] of clause.scenarios.entries()) {
        if (!scenario.origins.includes('image')) continue;
        await interpreter.must(preparation(scenario, place(clause, index, 'image')));
        await interpreter.must([`reset ${root}`]);
      }
    }
  } finally {
    await interpreter.close();
  }
  const tar = join(work, 'clauses.tar');
  // pax, for sub-second times; every xattr, ACLs and capabilities among them.
  const options = [
    '--format=pax',
    '--numeric-owner',
    '--sort=name',
    '--xattrs',
    '--sparse',
    `--mtime=${OLD}`,
  ];
  await must('tar', ['-C', root, ...options, '--xattrs-include=*', '-cf', tar, '.']);
  return tar;
}

/** What a test needs of a prepared subject. */
export interface Prepared {
  subject: Subject;
  /** The root of the tree, as child processes see it. */
  directory: string;
  /** A writable directory on another filesystem. */
  other: string;
}

/**
 * Runs one clause, each scenario with both origins.
 * @returns one line for each answer that was not as wanted; empty where all were
 */
export async function runClause(clause: Clause, on: Prepared): Promise<string[]> {
  const faults: string[] = [];
  for (const [index, scenario] of clause.scenarios.entries()) {
    if (!scenario.subjects.includes(on.subject)) continue;
    for (const origin of scenario.origins) {
      const interpreter = await Interpreter.start(on.directory);
      try {
        faults.push(...(await runScenario(interpreter, clause, index, origin, on)));
      } catch (error) {
        faults.push(`${on.subject}, ${place(clause, index, origin)}: ${String(error)}`);
      } finally {
        await interpreter.close();
      }
    }
  }
  return faults;
}

async function runScenario(
  interpreter: Interpreter,
  clause: Clause,
  index: number,
  origin: Origin,
  on: Prepared,
): Promise<string[]> {
  const scenario = clause.scenarios[index]!;
  const directory = place(clause, index, origin);
  // Clause 9.1.
  if (on.subject === 'overlay') await interpreter.must(['lax inodes']);
  await interpreter.must(
    origin === 'fresh' ? preparation(scenario, directory) : [`cd ${directory}`],
  );
  const steps = scenario.steps.map(({ command }) => command.replaceAll('OTHER', on.other));
  const answers = await interpreter.run(steps);
  const faults: string[] = [];
  for (const [i, step] of scenario.steps.entries()) {
    const wanted = mismatch(step, on.subject, origin, answers[i]!);
    if (wanted === undefined) continue;
    const command = steps[i]!.length > 120 ? `${steps[i]!.slice(0, 120)}...` : steps[i]!;
    faults.push(
      `${on.subject}, ${directory}, step ${i + 1}: ${command}: expected ${wanted}, got ${answers[i]!.slice(0, 200)}`,
    );
  }
  return faults;
}
