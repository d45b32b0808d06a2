// All clauses that are scripts of system calls, in the order of docs/SEMANTICS.md.
import type { Clause } from '../script.ts';
import { attributes } from './attributes.ts';
import { contents } from './contents.ts';
import { modes } from './modes.ts';
import { names } from './names.ts';
import { paths } from './paths.ts';
import { renames } from './renames.ts';

export const CLAUSES: Clause[] = [
  ...modes,
  ...paths,
  ...names,
  ...renames,
  ...contents,
  ...attributes,
];
