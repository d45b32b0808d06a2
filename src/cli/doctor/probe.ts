// `doctor`'s real mount: a child mounts a tree of one file, this process reads it.
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { FirstlightError, toFirstlightError } from '../../errors/errors.ts';
import type { SessionFeatures } from '../../native/index.ts';
import { errorFrom } from '../client.ts';
import type { Finding } from './checks.ts';

/** The whole probe takes no longer. */
const TIMEOUT_MS = 15_000;

interface Line {
  features?: SessionFeatures;
  passthroughOpens?: number;
  error?: { kind: string; message: string; hint?: string };
}

async function probe(
  base: string,
  signal: AbortSignal,
): Promise<{ features: SessionFeatures; passthroughOpens: number }> {
  const suffix = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  const script = new URL(`./probe-child.${suffix}`, import.meta.url).pathname;
  const child = spawn(process.execPath, [script, base], { stdio: ['pipe', 'pipe', 'inherit'] });
  const kill = () => child.kill('SIGKILL');
  const timer = setTimeout(kill, TIMEOUT_MS);
  signal.addEventListener('abort', kill);
  try {
    let features: SessionFeatures | undefined;
    for await (const text of createInterface({ input: child.stdout })) {
      const line = JSON.parse(text) as Line;
      if (line.error !== undefined) throw errorFrom(line.error);
      if (line.passthroughOpens !== undefined && features !== undefined) {
        return { features, passthroughOpens: line.passthroughOpens };
      }
      if (line.features !== undefined) {
        features = line.features;
        const read = await readFile(join(base, 'mnt', 'probe'), 'utf8');
        if (read !== 'firstlight\n')
          throw new FirstlightError('corrupt', 'read other bytes than were written');
        child.stdin.end();
      }
    }
    throw new FirstlightError('timeout', `the probe did not end within ${TIMEOUT_MS / 1000} s`);
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', kill);
    if (child.exitCode === null && child.signalCode === null) {
      const exited = new Promise((resolve) => child.once('exit', resolve));
      kill();
      await exited;
    }
  }
}

/** Mounts, reads, unmounts, and says what the kernel gave. */
export async function probeMount(signal: AbortSignal): Promise<Finding[]> {
  const base = await mkdtemp(join(tmpdir(), 'firstlight-doctor-'));
  try {
    const { features, passthroughOpens } = await probe(base, signal);
    const findings: Finding[] = [
      {
        name: 'fuse mount',
        level: 'ok',
        text: `works, protocol ${features.protocol}, ${features.transport}`,
      },
    ];
    if (features.passthrough && passthroughOpens > 0) {
      findings.push({
        name: 'passthrough',
        level: 'ok',
        text: 'the kernel reads ready files by itself',
      });
    } else {
      findings.push({
        name: 'passthrough',
        level: 'warn',
        text: features.passthrough
          ? 'offered, but refused for a file'
          : 'not offered by this kernel',
        hint: 'ready files are read through the daemon, which is slower; Linux 6.9 or newer has it',
      });
    }
    return findings;
  } catch (error) {
    signal.throwIfAborted();
    const e = toFirstlightError(error);
    return [
      {
        name: 'fuse mount',
        level: 'fail',
        text: e.message,
        hint: e.hint ?? 'see the kernel log (dmesg)',
      },
    ];
  } finally {
    await detach(join(base, 'mnt'));
    await rm(base, { recursive: true, force: true });
  }
}

/** Takes away what a killed child may have left. */
async function detach(path: string): Promise<void> {
  const { native } = await import('../../native/index.ts');
  const MNT_DETACH = 2;
  // Nothing is mounted there in the usual case, and that is the error.
  await native()
    .umount(path, MNT_DETACH)
    .catch(() => undefined);
}
