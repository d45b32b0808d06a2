// The full reader of the command line: help, suggestions and usage errors, by commander. Built from
// the tables of commands.ts and settings.ts.
import { Command, CommanderError, Option } from 'commander';
import { FirstlightError } from '../errors/errors.ts';
import {
  COMMANDS,
  type CommandSpec,
  type FlagSpec,
  GLOBAL_FLAGS,
  GLOBAL_SETTINGS,
  GROUPS,
} from './commands.ts';
import { flagsOf, type ParsedLine, settingsOf } from './quick-parse.ts';
import { SETTINGS, type SettingKey, variableOf } from './settings.ts';

/** A line that is answered by text alone: help or the version. */
export interface TextAnswer {
  text: string;
  exitCode: number;
}

function settingOption(key: SettingKey): Option {
  const spec = SETTINGS[key];
  const start = 'default' in spec ? spec.default : undefined;
  const shown = typeof start === 'function' ? start() : start;
  const notes = [`env: ${variableOf(key)}`];
  if (shown !== undefined) notes.push(`default: ${shown}`);
  return new Option(`--${key} <${spec.placeholder}>`, `${spec.text} (${notes.join(', ')})`);
}

function flagOption(flag: FlagSpec): Option {
  const value =
    flag.placeholder === undefined
      ? ''
      : ` <${flag.placeholder}${flag.multiple === true && !flag.placeholder.endsWith('...') ? '...' : ''}>`;
  return new Option(
    `${flag.short === undefined ? '' : `-${flag.short}, `}--${flag.name}${value}`,
    flag.text,
  );
}

function addGlobalOptions(command: Command): void {
  for (const key of GLOBAL_SETTINGS) command.addOption(settingOption(key));
  for (const flag of GLOBAL_FLAGS) command.addOption(flagOption(flag));
}

function camel(name: string): string {
  return name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
}

function addCommand(
  parent: Command,
  spec: CommandSpec,
  onParsed: (line: ParsedLine) => void,
): void {
  const command = parent.command(spec.path.at(-1) ?? '').description(spec.text);
  for (const argument of spec.arguments) {
    const name = argument.variadic === true ? `${argument.name}...` : argument.name;
    command.argument(argument.required ? `<${name}>` : `[${name}]`, argument.text);
  }
  for (const key of spec.settings) command.addOption(settingOption(key));
  for (const flag of spec.flags) command.addOption(flagOption(flag));
  addGlobalOptions(command);
  command.addHelpText('after', `\nExamples:\n${spec.examples.map((e) => `  $ ${e}`).join('\n')}`);
  command.action(() => {
    const values = command.optsWithGlobals();
    const names = [...settingsOf(spec), ...flagsOf(spec).map((flag) => flag.name)];
    const options = Object.fromEntries(
      names.map((name) => [name, values[camel(name)]]).filter(([, value]) => value !== undefined),
    );
    onParsed({ command: spec, args: command.args, options });
  });
}

/** The whole program; `onParsed` gets the line when it is a command's. */
export function buildProgram(version: string, onParsed: (line: ParsedLine) => void): Command {
  const program = new Command('firstlight')
    .description('Containers start before their image has arrived.')
    .version(version, '-V, --version', 'print the version')
    .enablePositionalOptions(false);
  addGlobalOptions(program);
  const groups = new Map<string, Command>();
  for (const spec of COMMANDS) {
    const [first = ''] = spec.path;
    if (spec.path.length === 1) {
      addCommand(program, spec, onParsed);
      continue;
    }
    let group = groups.get(first);
    if (group === undefined) {
      group = program.command(first).description(GROUPS[first] ?? '');
      groups.set(first, group);
    }
    addCommand(group, spec, onParsed);
  }
  program.addHelpText(
    'after',
    '\nExamples:\n  $ firstlight serve --data ./data\n  $ firstlight image add docker://registry.example.com/shop/redis:7 --name redis:7\n  $ firstlight run redis:7\n\nEach option that names a variable is also a key of the configuration file\n(--config, $XDG_CONFIG_HOME/firstlight/config.toml or /etc/firstlight/config.toml).',
  );
  return program;
}

function prepare(command: Command, write: (text: string) => void): void {
  command.exitOverride();
  command.configureOutput({ writeOut: write, writeErr: write });
  for (const child of command.commands) prepare(child, write);
}

/**
 * Reads `argv` (without interpreter and script).
 * @throws FirstlightError `usage`
 */
export function fullParse(argv: string[], version: string): ParsedLine | TextAnswer {
  let parsed: ParsedLine | undefined;
  let written = '';
  const program = buildProgram(version, (line) => {
    parsed = line;
  });
  prepare(program, (text) => {
    written += text;
  });
  try {
    program.parse(argv, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === 'commander.helpDisplayed' || error.code === 'commander.version') {
      return { text: written, exitCode: 0 };
    }
    // No command at all: the help is the answer, and the call was still not right.
    if (error.code === 'commander.help') return { text: written, exitCode: 2 };
    const message = error.message.replace(/^error: /, '').replace(/\s*\n\s*/g, ' ');
    const words = argv.filter((word) => !word.startsWith('-'));
    const named = COMMANDS.find((c) => c.path.every((word, i) => words[i] === word));
    throw new FirstlightError('usage', message, {
      hint: `see firstlight ${named === undefined ? '' : `${named.path.join(' ')} `}--help`,
      cause: error,
    });
  }
  if (parsed === undefined)
    throw new FirstlightError('usage', 'no command', { hint: 'see firstlight --help' });
  return parsed;
}
