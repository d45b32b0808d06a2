// Puts the rows of JSON files into docs/PERFORMANCE.md, between its markers:
//   node bench/lib/table.ts docs/PERFORMANCE.md metadata.json receive.json
// What does not live here: the words around the tables.
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { type MachineFacts, machineFacts } from './measure.ts';
import { bound, type Row, verdict } from './rows.ts';

/** Rows of a JSON file as a bench writes it; throws where it holds none. */
export function readRows(text: string): Row[] {
  const rows = text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Row);
  if (rows.length === 0) throw new Error('no rows: the bench has not run to its end');
  return rows;
}

/** Rows as a Markdown table. */
export function markdownTable(rows: Row[]): string {
  const lines = [
    '| row | value | baseline | ratio | budget | |',
    '|---|---|---|---|---|---|',
    ...rows.map((row) => {
      const baseline =
        row.baseline === null ? '' : `${row.baseline_value} ${row.unit} (${row.baseline})`;
      const cells = [
        `\`${row.row}\``,
        `${row.value} ${row.unit}`,
        baseline,
        row.ratio === null ? '' : `${row.ratio}`,
        bound(row),
        verdict(row),
      ];
      return `| ${cells.join(' | ')} |`;
    }),
  ];
  return lines.join('\n');
}

/** The machine in one Markdown line. */
export function machineLine(facts: MachineFacts): string {
  return (
    `Measured ${facts.date} on Linux ${facts.kernel}, ${facts.cpus}, ${facts.memory_gib} GiB of memory, ` +
    `files on ${facts.filesystem}, Node.js ${facts.node}, zstd ${facts.zstd}.`
  );
}

/** Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->`; throws where they are missing. */
export function replaceBetween(text: string, name: string, content: string): string {
  const start = `<!-- ${name} -->`;
  const end = `<!-- /${name} -->`;
  const from = text.indexOf(start);
  const to = text.indexOf(end);
  if (from < 0 || to < from) throw new Error(`the markers ${start} and ${end} are missing`);
  return `${text.slice(0, from + start.length)}\n${content}\n${text.slice(to)}`;
}

function main([page, ...files]: string[]): void {
  if (page === undefined || files.length === 0) {
    throw new Error('usage: table.ts PAGE.md ROWS.json...');
  }
  let text = readFileSync(page, 'utf8');
  for (const file of files) {
    const rows = readRows(readFileSync(file, 'utf8'));
    text = replaceBetween(text, `bench-${rows[0]!.bench}`, markdownTable(rows));
  }
  text = replaceBetween(text, 'machine', machineLine(machineFacts('.')));
  writeFileSync(page, text);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main(process.argv.slice(2));
