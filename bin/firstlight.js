#!/usr/bin/env node
// Entry of the command line: turns the compile cache on, then runs the compiled program, or the
// sources where this is a checkout. A Node that is too old is replaced by the pinned one.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import module from 'node:module';
import { fileURLToPath } from 'node:url';

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
const pinned = fileURLToPath(new URL('../node_modules/.bin/node', import.meta.url));
if (major < 22 || (major === 22 && minor < 18)) {
  if (!existsSync(pinned)) {
    process.stderr.write(
      `firstlight: needs Node.js 22.18 or newer, this is ${process.version}; run "npm ci" in the checkout, which brings one\n`,
    );
    process.exit(1);
  }
  const child = spawnSync(pinned, process.argv.slice(1), { stdio: 'inherit' });
  process.exit(child.status ?? 1);
}
module.enableCompileCache();
const compiled = new URL('../dist/cli/main.js', import.meta.url);
const source = new URL('../src/cli/main.ts', import.meta.url);
await import(existsSync(source) ? source.href : compiled.href);
