// Entry of the command line: reads it, runs the command, turns what comes back into an exit code.
import { readFileSync } from 'node:fs';
import { type Context, Interrupted } from './context.ts';
import { reportError, writeAll } from './print.ts';
import { type ParsedLine, quickParse } from './quick-parse.ts';
import { Settings } from './settings.ts';

/** The package's version. */
export function version(): string {
  const path = new URL('../../package.json', import.meta.url);
  return (JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version;
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

function makeContext(settings: Settings, line: ParsedLine): Context {
  const aborter = new AbortController();
  const json = line.options.json === true;
  const quiet = line.options.quiet === true;
  const onSignal = (signal: (typeof SIGNALS)[number]) => {
    const interrupted = new Interrupted(signal);
    // Asked twice: the command does not come to its end, so the program does.
    if (aborter.signal.aborted) process.exit(interrupted.exitCode);
    aborter.abort(interrupted);
  };
  for (const signal of SIGNALS) process.on(signal, onSignal);
  return {
    settings,
    json,
    quiet,
    signal: aborter.signal,
    releaseSignals: () => {
      for (const signal of SIGNALS) process.off(signal, onSignal);
    },
    print: (text) => writeAll(1, `${text}\n`),
    printJson: (value) => writeAll(1, `${JSON.stringify(value)}\n`),
    note: (text) => {
      if (!quiet && !json) writeAll(2, `${text}\n`);
    },
  };
}

async function readLine(argv: string[]): Promise<ParsedLine | number> {
  if (argv.length === 1 && (argv[0] === '--version' || argv[0] === '-V')) {
    writeAll(1, `${version()}\n`);
    return 0;
  }
  const quick = quickParse(argv);
  if (quick !== undefined) return quick;
  const { fullParse } = await import('./program.ts');
  const line = fullParse(argv, version());
  if ('command' in line) return line;
  writeAll(line.exitCode === 0 ? 1 : 2, line.text);
  return line.exitCode;
}

/** Runs one command line (without interpreter and script) and gives its exit code. */
export async function main(argv: string[]): Promise<number> {
  let json = argv.includes('--json');
  let context: Context | undefined;
  try {
    const line = await readLine(argv);
    if (typeof line === 'number') return line;
    json = line.options.json === true;
    const settings = await Settings.load(line.options);
    // The logger reads the variable. A command says what it has done by itself; log lines beside
    // that are for what runs long.
    const runsLong = ['serve', 'daemon'].includes(line.command.path[0] ?? '');
    process.env.FIRSTLIGHT_LOG = runsLong || settings.isSet('log') ? settings.text('log') : 'warn';
    const command = await line.command.load();
    context = makeContext(settings, line);
    const code = await command.run(context, line.args, line.options);
    return code ?? 0;
  } catch (error) {
    // Once a signal has come, whatever fails fails because of it.
    return reportError(context?.signal.aborted === true ? context.signal.reason : error, json);
  }
}
