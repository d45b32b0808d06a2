// The fast reader of the command line: a well-formed call of a known command, by Node's own
// parseArgs. Whatever it does not take at once (help, version, options before the command, every
// mistake) goes to program.ts, whose reader costs 15 ms to load and has the words for people.
import { type ParseArgsOptionsConfig, parseArgs } from 'node:util';
import {
  type CommandSpec,
  type FlagSpec,
  findCommand,
  GLOBAL_FLAGS,
  GLOBAL_SETTINGS,
  type OptionValues,
} from './commands.ts';

/** A command line, understood. */
export interface ParsedLine {
  command: CommandSpec;
  args: string[];
  options: OptionValues;
}

/** Names of the settings a command takes as flags. */
export function settingsOf(command: CommandSpec): string[] {
  return [...GLOBAL_SETTINGS, ...command.settings];
}

/** Flags of a command, the global ones last. */
export function flagsOf(command: CommandSpec): FlagSpec[] {
  return [...command.flags, ...GLOBAL_FLAGS];
}

/** Reads `argv` (without interpreter and script); undefined where program.ts must look at it. */
export function quickParse(argv: string[]): ParsedLine | undefined {
  const command = findCommand(argv);
  if (command === undefined) return undefined;
  const config: ParseArgsOptionsConfig = {};
  for (const name of settingsOf(command)) config[name] = { type: 'string' };
  for (const flag of flagsOf(command)) {
    config[flag.name] = {
      type: flag.placeholder === undefined ? 'boolean' : 'string',
      ...(flag.multiple === true ? { multiple: true } : {}),
      ...(flag.short === undefined ? {} : { short: flag.short }),
    };
  }
  try {
    const { values, positionals } = parseArgs({
      args: argv.slice(command.path.length),
      options: config,
      allowPositionals: true,
      strict: true,
    });
    const least = command.arguments.filter((argument) => argument.required).length;
    const most = command.arguments.some((argument) => argument.variadic === true)
      ? Number.POSITIVE_INFINITY
      : command.arguments.length;
    if (positionals.length < least || positionals.length > most) return undefined;
    return { command, args: positionals, options: { ...values } };
  } catch {
    // The other reader finds the same mistake and says it better.
    return undefined;
  }
}
