// Reads the records of a native trace. What does not live here: what becomes of them (tree/).
import { TRACE_KIND, TRACE_RECORD_BYTES, type TraceRecords } from '../native/index.ts';
import type { Access, Accesses } from '../tree/session.ts';

/** Records as accesses, in the order in which they were answered. */
export function readRecords({ records, lost }: TraceRecords): Accesses {
  const view = new DataView(records);
  const accesses: Access[] = [];
  for (let at = 0; at + TRACE_RECORD_BYTES <= records.byteLength; at += TRACE_RECORD_BYTES) {
    const kind = view.getUint32(at + 32, true);
    accesses.push({
      kind: kind === TRACE_KIND.Read ? 'read' : 'open',
      row: view.getUint32(at + 28, true),
      atNs: view.getFloat64(at, true),
      waitNs: view.getFloat64(at + 8, true),
      offsetBytes: view.getFloat64(at + 16, true),
      lengthBytes: view.getUint32(at + 24, true),
      readsSeen: kind !== TRACE_KIND.Open,
    });
  }
  return { accesses, lost };
}
