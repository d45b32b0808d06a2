// CSV of runs and collections.
import test from 'ava';
import { TraceCollection } from './collection.ts';
import { collectionCsv, tracerCsv } from './csv.ts';
import { large, runOf } from './testing.ts';

test('a run as CSV: quoted, safe in spreadsheets, ranges on lines of their own', (t) => {
  const run = runOf(['a,b', '=1+1', 'say "x"', 'caf\xe9', large('big', 9, [1])]);
  run.seq[0]!.sizeBytes = 5;
  run.seq[0]!.arrivedNs = 7;
  const [head, ...lines] = tracerCsv(run).split('\r\n');
  t.is(
    head,
    'path,path_base64,layer,access_ns,wait_ns,size_bytes,offset_bytes,length_bytes,arrived_ns',
  );
  t.deepEqual(lines, [
    '"a,b",,0,0,0,5,,,7',
    "'=1+1,,0,1000000,0,,,,",
    '"say ""x""",,0,2000000,0,,,,',
    'caf\ufffd,Y2Fm6Q==,0,3000000,0,,,,',
    'big,,0,9000000,0,,,,',
    'big,,0,9000000,0,,1048576,4096,',
    '',
  ]);
});

test('a collection as CSV', (t) => {
  const digest = `sha256:${'1'.repeat(64)}`;
  const runs = [runOf(['a', large('big', 5, [0, 3])], { group: 'g', digest })];
  const [, ...lines] = collectionCsv(TraceCollection.fromTracers(runs)).split('\r\n');
  t.deepEqual(lines, [
    `g,app:1,${digest},0,a,,,,0,0,1,1`,
    `g,app:1,${digest},1,big,,0,1048576,5000000,,1,1`,
    `g,app:1,${digest},2,big,,3145728,1048576,6000000,,1,1`,
    '',
  ]);
});
