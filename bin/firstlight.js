#!/usr/bin/env node
// Entry of the command line: turns the compile cache on, then runs the sources where this is a
// checkout, else the compiled program. A Node that is too old is replaced by the pinned one.
import { existsSync } from 'node:fs';
import module from 'node:module';
import { fileURLToPath } from 'node:url';

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 22 || (major === 22 && minor < 18)) {
  const pinned = fileURLToPath(new URL('../node_modules/.bin/node', import.meta.url));
  if (!existsSync(pinned)) {
    process.stderr.write(
      `firstlight: needs Node.js 22.18 or newer, this is ${process.version}; run "npm ci" in the checkout, which brings one\n`,
    );
    process.exit(1);
  }
  const { spawn } = await import('node:child_process');
  const child = spawn(pinned, process.argv.slice(1), { stdio: 'inherit' });
  // Signals of a terminal reach both; the others are handed on, and the child decides.
  for (const signal of ['SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
  process.on('SIGINT', () => {});
  child.on('exit', (code, signal) => process.exit(signal === null ? code : 1));
} else {
  module.enableCompileCache();
  const source = new URL('../src/cli/main.ts', import.meta.url);
  const compiled = new URL('../dist/cli/main.js', import.meta.url);
  const { main } = await import(existsSync(source) ? source.href : compiled.href);
  process.exit(await main(process.argv.slice(2)));
}
