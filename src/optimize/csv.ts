// Traces and collections as CSV (RFC 4180, header line, CRLF). Spreadsheets run cells that begin
// with =, +, - or @ as formulas, and names come from images: such cells get an apostrophe in front.
import { pathKeys } from '../trace/names.ts';
import type { Tracer } from '../trace/tracer.ts';
import type { TraceCollection } from './collection.ts';

function cell(value: string | number | undefined): string {
  if (value === undefined) return '';
  if (typeof value === 'number') return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function line(cells: (string | number | undefined)[]): string {
  return `${cells.map(cell).join(',')}\r\n`;
}

/** A run: one line for each file and for each range of it. */
export function tracerCsv(tracer: Tracer): string {
  const lines = [
    line(
      'path,path_base64,layer,access_ns,wait_ns,size_bytes,offset_bytes,length_bytes,arrived_ns'.split(
        ',',
      ),
    ),
  ];
  for (const item of tracer.seq) {
    const { f, b } = pathKeys(item.path);
    const { layer, accessNs, waitNs, sizeBytes, arrivedNs } = item;
    lines.push(line([f, b, layer, accessNs, waitNs, sizeBytes, undefined, undefined, arrivedNs]));
    for (const range of item.ranges ?? []) {
      const { offsetBytes, lengthBytes } = range;
      lines.push(
        line([
          f,
          b,
          layer,
          range.accessNs,
          range.waitNs,
          sizeBytes,
          offsetBytes,
          lengthBytes,
          undefined,
        ]),
      );
    }
  }
  return lines.join('');
}

/** A collection: one line for each file and for each ranked part of it. */
export function collectionCsv(collection: TraceCollection): string {
  const lines = [
    line(
      'group,image,digest,rank,path,path_base64,offset_bytes,length_bytes,access_ns,wait_ns,runs,of_runs'.split(
        ',',
      ),
    ),
  ];
  for (const { name, images, digests, history, runs } of collection.groups) {
    for (const item of history) {
      const { f, b } = pathKeys(item.path);
      const start = [name, images[item.img], digests?.[item.img]];
      const of = runs?.[item.img];
      const ranges = item.ranges ?? [];
      if (ranges.length === 0) {
        const { rank, accessNs, waitNs } = item;
        const end = [undefined, undefined, accessNs, waitNs, item.runs, of];
        lines.push(line([...start, rank, f, b, ...end]));
      }
      for (const { rank, offsetBytes, lengthBytes, accessNs, runs: seen } of ranges) {
        const end = [offsetBytes, lengthBytes, accessNs, undefined, seen, of];
        lines.push(line([...start, rank, f, b, ...end]));
      }
    }
  }
  return lines.join('');
}
