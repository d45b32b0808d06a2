import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { FirstlightError } from '../errors/errors.ts';
import { parseDuration, SETTINGS, Settings, variableOf } from './settings.ts';

async function withFile<T>(text: string, use: (path: string) => Promise<T>): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-settings-'));
  try {
    const path = join(dir, 'config.toml');
    await writeFile(path, text);
    return await use(path);
  } finally {
    await rm(dir, { recursive: true });
  }
}

test('a flag wins over the environment, that over the file, that over the default', (t) =>
  withFile('server = "http://file:1"\nrw = "off"\nthreads = 3', async (config) => {
    const env = { FIRSTLIGHT_SERVER: 'http://env:1', FIRSTLIGHT_RW: 'overlay' };
    const settings = await Settings.load({ config, server: 'http://flag:1' }, env);
    t.is(settings.text('server'), 'http://flag:1');
    t.is(settings.text('rw'), 'overlay');
    t.is(settings.count('threads'), 3);
    t.is(settings.text('session'), 'kernel');
    t.true(settings.isSet('threads'));
    t.false(settings.isSet('session'));
  }));

test('every key can be set by flag, by variable and by file', async (t) => {
  const samples: Record<string, string> = {
    url: 'https://sample:1',
    path: '/sample',
    text: 'sample',
    duration: '77s',
    count: '7',
    boolean: 'false',
  };
  for (const [key, { type }] of Object.entries(SETTINGS)) {
    const name = key as keyof typeof SETTINGS;
    const sample = typeof type === 'string' ? samples[type]! : type.at(-1)!;
    t.is((await Settings.load({ [key]: sample }, {})).text(name), sample, `--${key}`);
    t.is((await Settings.load({}, { [variableOf(key)]: sample })).text(name), sample);
    await withFile(`${key} = "${sample}"`, async (config) => {
      t.is((await Settings.load({ config }, {})).text(name), sample, `${key} in the file`);
    });
  }
});

test('an unknown key is an error that names file and key', (t) =>
  withFile('serever = "http://x"', async (config) => {
    const error = await t.throwsAsync(Settings.load({ config }, {}), {
      instanceOf: FirstlightError,
    });
    t.is(error.kind, 'usage');
    t.true(error.line.includes(config));
    t.true(error.line.includes('"serever"'));
  }));

test('a table is an unknown key too', (t) =>
  withFile('[mount]\nrw = "off"', async (config) => {
    const error = await t.throwsAsync(Settings.load({ config }, {}), {
      instanceOf: FirstlightError,
    });
    t.regex(error.line, /unknown key "mount"/);
  }));

test('a file that is not TOML, or is not there, is a usage error', async (t) => {
  await withFile('server = ', async (config) => {
    await t.throwsAsync(Settings.load({ config }, {}), { message: /config\.toml: / });
  });
  await t.throwsAsync(Settings.load({ config: '/nonexistent/c.toml' }, {}), {
    message: /\/nonexistent\/c\.toml cannot be read/,
  });
});

test('a bad value names the place it came from', async (t) => {
  const cases: [Record<string, string>, Record<string, string>, keyof typeof SETTINGS, RegExp][] = [
    [{ server: 'host:7070' }, {}, 'server', /^--server is "host:7070"/],
    [{}, { FIRSTLIGHT_WAIT_TIMEOUT: 'soon' }, 'wait-timeout', /^FIRSTLIGHT_WAIT_TIMEOUT is "soon"/],
    [{ rw: 'maybe' }, {}, 'rw', /overlay, fuse, off/],
    [{ threads: '-1' }, {}, 'threads', /whole number/],
    [{ threads: '65' }, {}, 'threads', /up to 64/],
    [{ passthrough: 'yes' }, {}, 'passthrough', /true or false/],
  ];
  for (const [flags, env, key, expected] of cases) {
    const settings = await Settings.load(flags, env);
    const error = t.throws(() => settings.text(key), { instanceOf: FirstlightError });
    t.is(error.kind, 'usage');
    t.regex(error.line, expected);
  }
  await withFile('log = "loud"', async (config) => {
    const settings = await Settings.load({ config }, {});
    const error = t.throws(() => settings.text('log'), { instanceOf: FirstlightError });
    t.true(error.line.startsWith(`${config}: "log" is "loud"`));
  });
});

test('a setting without default says how to give it', async (t) => {
  const settings = await Settings.load({}, {});
  const error = t.throws(() => settings.text('data'), { instanceOf: FirstlightError });
  t.is(error.line, '--data is not given; give --data DIR or set FIRSTLIGHT_DATA');
  t.is(settings.optional('data'), undefined);
});

test('an empty variable counts as unset, and relative paths become absolute', async (t) => {
  const settings = await Settings.load({ root: 'some/where' }, { FIRSTLIGHT_RW: '' });
  t.is(settings.text('rw'), 'overlay');
  t.is(settings.text('root'), join(process.cwd(), 'some/where'));
});

test('times', (t) => {
  t.is(parseDuration('300s'), 300_000);
  t.is(parseDuration('5m'), 300_000);
  t.is(parseDuration('1.5h'), 5_400_000);
  t.is(parseDuration('250ms'), 250);
  t.is(parseDuration('10'), 10_000);
  t.is(parseDuration('0'), 0);
  for (const bad of ['', '-1s', 's', '1d', '1 s', '1e3', '999999999h']) {
    t.is(parseDuration(bad), undefined, bad);
  }
});

test('an empty variable is none, but where it was to guard something', async (t) => {
  const settings = await Settings.load({}, { FIRSTLIGHT_TOKEN_FILE: '', FIRSTLIGHT_TOKENS: '' });
  t.is(settings.optional('token-file'), undefined);
  const error = t.throws(() => settings.optional('tokens'), { instanceOf: FirstlightError });
  t.is(error.line, 'FIRSTLIGHT_TOKENS is ""; tokens must be not empty');
});
