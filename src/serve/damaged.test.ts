// How much is said of damaged contents.
import test from 'ava';
import { quietLog } from '../../test/receive/fixture.ts';
import { DamagedContents } from './damaged.ts';

test('many damaged contents are a line for each bundle and image, and told once', (t) => {
  const { log, lines } = quietLog();
  const damaged = new DamagedContents(log);
  const olds = (base: string, count: number) =>
    Array.from({ length: count }, (_, i) => ({ base, content: `${base} ${i}` }));
  for (let bundle = 0; bundle < 3; bundle++) damaged.tell([...olds('a', 4000), ...olds('b', 3)]);
  t.deepEqual(
    lines.map(({ image, contents, content }) => [image, contents, content]),
    [
      ['a', 4000, 'a 0'],
      ['b', 3, 'b 0'],
    ],
  );
  // What was not seen before is told, and what was is not told with it.
  damaged.tell(olds('b', 5));
  t.like(lines[2], { image: 'b', contents: 2, content: 'b 3' });
  t.is(lines.length, 3);
  // More than are remembered: still a line for each bundle, and not one for each content.
  for (let bundle = 0; bundle < 3; bundle++) damaged.tell(olds('c', 12_000));
  t.true(lines.length <= 6, `${lines.length} lines`);
});
