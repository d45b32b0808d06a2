// `firstlight trace export [TRACE...]`: runs, or what they say together, as JSON or CSV.
import { FirstlightError } from '../../errors/errors.ts';
import { TraceCollection } from '../../optimize/collection.ts';
import { collectionCsv, tracerCsv } from '../../optimize/csv.ts';
import type { StoredTrace } from '../../trace/files.ts';
import { formatTracer } from '../../trace/format.ts';
import type { OptionValues } from '../commands.ts';
import type { Context } from '../context.ts';
import { writeAll } from '../print.ts';
import { findTraces, noteBroken } from '../traces.ts';
import { writeFileWhole } from '../write-file.ts';

const FORMATS = ['json', 'csv'] as const;
const KINDS = ['trace', 'runs', 'merged'] as const;

function oneOf<T extends string>(
  flag: string,
  values: readonly T[],
  given: unknown,
): T | undefined {
  if (given === undefined) return undefined;
  if (values.includes(given as T)) return given as T;
  throw new FirstlightError('usage', `--${flag} is "${String(given)}"`, {
    hint: `${flag} must be ${values.join(', ')}`,
  });
}

function textOf(
  traces: readonly StoredTrace[],
  kind: (typeof KINDS)[number],
  format: (typeof FORMATS)[number],
): string {
  const tracers = traces.map(({ tracer }) => tracer);
  if (kind === 'trace') {
    const [tracer] = tracers;
    if (tracer === undefined || tracers.length > 1) {
      throw new FirstlightError('usage', `--as trace writes one run, not ${tracers.length}`, {
        hint: 'name one, or use --as runs or --as merged',
      });
    }
    return format === 'csv' ? tracerCsv(tracer) : formatTracer(tracer);
  }
  const merge = kind === 'merged' ? 'median' : 'none';
  const collection = TraceCollection.fromTracers(tracers, merge);
  return format === 'csv' ? collectionCsv(collection) : `${JSON.stringify(collection)}\n`;
}

export async function run(
  context: Context,
  args: string[],
  options: OptionValues,
): Promise<undefined> {
  const format = oneOf('format', FORMATS, options.format) ?? 'json';
  const asked = oneOf('as', KINDS, options.as);
  const { traces, broken } = await findTraces(context, args);
  noteBroken(context, broken);
  const text = textOf(traces, asked ?? (traces.length === 1 ? 'trace' : 'merged'), format);
  const output = options.output as string | undefined;
  if (output === undefined) writeAll(1, text);
  else await writeFileWhole(output, text);
  return undefined;
}
