// The language of the clauses: what has to be there, and system calls with the answers they must
// give. What does not live here: the clauses (clauses/) and running them (conformance.ts).
//
//     file f 0644 1000:1000 =text     what is there before: in the image, or made through the mount
//     --
//     as 1000 1000                    a command of the interpreter that must succeed
//     chmod f 0600 -> EPERM           ... or that must give this answer
//     rename d e -> ok | overlay/image EXDEV (9.6)    ... and where a subject differs, by which clause
//
// {a*255} is repetition, OTHER a directory on another filesystem. A first line `only fresh|image` or
// `only SUBJECT,SUBJECT` restricts a scenario.

/** Where the things of a scenario come from. */
export type Origin = 'fresh' | 'image';
/** What a scenario is run on: a plain directory, or a mount with that `--rw`. */
export type Subject = 'plain' | 'overlay' | 'fuse';

/** One command and what it must give. */
export interface Step {
  command: string;
  /** undefined: anything that succeeds. */
  expected: string | undefined;
  /** Other answers, by subject. */
  otherwise: Partial<Record<Subject | `${Subject}/${Origin}`, string>>;
  /** Clauses that say so. */
  clauses: string[];
}

/** One scenario: its own directory, its own start. */
export interface Scenario {
  origins: Origin[];
  subjects: Subject[];
  setup: string[];
  steps: Step[];
}

/** One promise of docs/SEMANTICS.md. */
export interface Clause {
  id: string;
  /** The sentence, as it stands there. */
  title: string;
  scenarios: Scenario[];
}

const SUBJECTS: Subject[] = ['plain', 'overlay', 'fuse'];

/** A clause from its scenarios' texts. */
export function clause(id: string, title: string, ...texts: string[]): Clause {
  return { id, title, scenarios: texts.map((text) => parseScenario(id, text)) };
}

function parseScenario(id: string, text: string): Scenario {
  const scenario: Scenario = {
    origins: ['fresh', 'image'],
    subjects: [...SUBJECTS],
    setup: [],
    steps: [],
  };
  let before = true;
  for (const raw of text.split('\n')) {
    const line = expand(raw.trim());
    if (line === '' || line.startsWith('#')) continue;
    if (line === '--') before = false;
    else if (line.startsWith('only ')) restrict(id, scenario, line.slice(5));
    else if (before) scenario.setup.push(...setupCommands(line));
    else scenario.steps.push(parseStep(id, line));
  }
  if (scenario.steps.length === 0) throw new Error(`clause ${id}: a scenario without a step`);
  return scenario;
}

function restrict(id: string, scenario: Scenario, word: string): void {
  if (word === 'fresh' || word === 'image') {
    scenario.origins = [word];
    return;
  }
  const subjects = word.split(',') as Subject[];
  if (!subjects.every((subject) => SUBJECTS.includes(subject))) {
    throw new Error(`clause ${id}: only ${word}?`);
  }
  scenario.subjects = subjects;
}

/** {TEXT*COUNT} is TEXT, COUNT times. */
function expand(line: string): string {
  return line.replace(/\{([^{}*]+)\*(\d+)\}/g, (_, part: string, count: string) =>
    part.repeat(Number(count)),
  );
}

/** `file` and `directory` are short for several commands; the rest are the interpreter's own. */
function setupCommands(line: string): string[] {
  const [word, path = '', mode = '', owner = '0:0', data] = line.split(' ');
  const [uid, gid] = owner.split(':');
  // The owner first: a change of it clears setuid.
  const attributes = [`chown ${path} ${uid} ${gid}`, `chmod ${path} ${mode}`];
  if (word === 'directory') return [`mkdir ${path}`, ...attributes];
  if (word !== 'file') return [line];
  return [
    `open setup ${path} w,creat,excl`,
    ...(data === undefined ? [] : [`write setup ${data}`]),
    'close setup',
    ...attributes,
  ];
}

function parseStep(id: string, line: string): Step {
  const [head = '', ...others] = line.split(' | ');
  const [command = '', expected] = head.split(' -> ');
  const step: Step = { command, expected, otherwise: {}, clauses: [] };
  for (const other of others) {
    const match = /^((?:plain|overlay|fuse)(?:\/(?:fresh|image))?) (.*) \(([\d.]+)\)$/.exec(other);
    if (match === null) throw new Error(`clause ${id}: cannot be read: ${other}`);
    step.otherwise[match[1] as Subject | `${Subject}/${Origin}`] = match[2]!;
    step.clauses.push(match[3]!);
  }
  return step;
}

/** Whether an answer is what a step wants of a subject; the wanted one where it is not. */
export function mismatch(
  step: Step,
  subject: Subject,
  origin: Origin,
  answer: string,
): string | undefined {
  const { otherwise } = step;
  const wanted = otherwise[`${subject}/${origin}`] ?? otherwise[subject] ?? step.expected;
  if (wanted === undefined) return /^(ok|lines)\b/.test(answer) ? undefined : 'ok';
  // Whatever it is, it must have been answered.
  if (wanted === '*') return undefined;
  return wanted === answer ? undefined : wanted;
}
