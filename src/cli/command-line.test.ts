import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { COMMANDS } from './commands.ts';
import { fullParse } from './program.ts';
import { type ParsedLine, quickParse } from './quick-parse.ts';

function full(argv: string[]): ParsedLine {
  const parsed = fullParse(argv, '9.9.9');
  if (!('command' in parsed)) throw new Error(`text answer: ${parsed.text}`);
  return parsed;
}

const LINES = [
  'serve --data ./data',
  'serve --data=./data --listen 0.0.0.0:1 --rate 100mbit',
  'image add rootfs:x.tar --name debian:12',
  'image ls --json',
  'image rm a:1 b:2 c:3',
  'mount redis:7 /mnt',
  'mount redis:7 /mnt --wait --rw off -q',
  'mount --rw off redis:7 /mnt',
  'mount redis:7 /mnt --update-from a:1 --update-from b:1',
  'umount --lazy /mnt',
  'run redis:7',
  'run redis:7 sh',
  'run redis:7 --name x -- redis-server --port 7000 --json',
  'run redis:7 -- sh -c true',
  'status -f /mnt',
  'ls',
  'gc --all',
  'daemon --idle 5s --root /tmp/x',
  'trace ls --reported',
  'trace show 2026 --json',
  'trace export a b --as merged --format csv -o x.csv',
  'trace report --wait --token-file t',
  'trace report a --html x.html --bandwidth 20mbit --rtt 150ms',
  'optimize simulate a --in-order --warm --image b:2 --all',
];

for (const line of LINES) {
  test(`both readers agree: firstlight ${line}`, (t) => {
    const quick = quickParse(line.split(' '));
    const slow = full(line.split(' '));
    t.truthy(quick, 'the fast reader takes it');
    t.is(quick?.command, slow.command);
    t.deepEqual(quick?.args, slow.args);
    t.deepEqual(quick?.options, slow.options);
  });
}

test('what the fast reader leaves is read by the full one', (t) => {
  const variadic = 'mount redis:7 /mnt --update-from a:1 b:1'.split(' ');
  t.is(quickParse(variadic), undefined);
  t.deepEqual(full(variadic).options['update-from'], ['a:1', 'b:1']);
  t.deepEqual(full(variadic).args, ['redis:7', '/mnt']);
  const before = '--root /x --json mount redis:7 /mnt'.split(' ');
  t.is(quickParse(before), undefined);
  t.is(full(before).options.root, '/x');
  t.is(full(before).options.json, true);
});

for (const line of [
  'mount redis:7',
  'mount a b c d',
  'mount a b --wiat',
  'mout a b',
  'image',
  'mount a b --rw',
]) {
  test(`a usage error: firstlight ${line}`, (t) => {
    t.is(quickParse(line.split(' ')), undefined);
    const parse = () => fullParse(line.split(' '), '9.9.9');
    if (line === 'image') {
      t.like(parse(), { exitCode: 2 });
      return;
    }
    const error = t.throws(parse, { instanceOf: FirstlightError });
    t.is(error.kind, 'usage');
    t.notRegex(error.line, /\n/);
    t.regex(error.line, /see firstlight .*--help/);
  });
}

test('help of every command has its arguments, options and examples', (t) => {
  for (const command of COMMANDS) {
    const help = fullParse([...command.path, '--help'], '9.9.9');
    t.true('text' in help && help.exitCode === 0);
    if (!('text' in help)) continue;
    for (const example of command.examples) t.true(help.text.includes(example), example);
    for (const flag of command.flags) t.true(help.text.includes(`--${flag.name}`), flag.name);
    for (const key of command.settings) t.true(help.text.includes(`--${key} `), key);
    for (const key of ['--server', '--root', '--config', '--json', '--quiet']) {
      t.true(help.text.includes(key), `${command.path.join(' ')} ${key}`);
    }
  }
});

test('version and bare call', (t) => {
  t.deepEqual(fullParse(['--version'], '9.9.9'), { text: '9.9.9\n', exitCode: 0 });
  const bare = fullParse([], '9.9.9');
  t.true('text' in bare && bare.exitCode === 2 && bare.text.includes('mount'));
});
