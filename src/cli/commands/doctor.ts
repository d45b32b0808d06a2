// `firstlight doctor`: what this machine gives, and what to do about what it does not.
import type { Context } from '../context.ts';
import {
  checkAddon,
  checkKernel,
  checkMountRight,
  checkNode,
  checkOpens,
  checkOverlay,
  checkRoot,
  checkRuntime,
  checkServer,
  checkSlowStart,
  checkUring,
  type Finding,
} from '../doctor/checks.ts';
import { probeMount } from '../doctor/probe.ts';

const MARKS = { ok: 'ok  ', warn: 'warn', fail: 'FAIL' } as const;

export async function run(context: Context): Promise<number> {
  const { settings } = context;
  const findings: Finding[] = [];
  const add = (...found: (Finding | undefined)[]) => {
    for (const finding of found) {
      if (finding === undefined) continue;
      findings.push(finding);
      if (context.json) continue;
      context.print(`${MARKS[finding.level]}  ${finding.name}: ${finding.text}`);
      if (finding.hint !== undefined) context.print(`      -> ${finding.hint}`);
    }
    context.signal.throwIfAborted();
  };
  add(checkNode(), checkKernel(), checkOpens());
  const addon = await checkAddon();
  add(...addon);
  add(await checkMountRight());
  // Without device, addon or right the probe could only repeat what has just been said.
  if (
    findings.every(({ level }) => level !== 'fail') &&
    addon.every(({ level }) => level === 'ok')
  ) {
    add(...(await probeMount(context.signal)));
  }
  add(await checkUring());
  add(await checkOverlay());
  add(await checkRuntime(settings.optional('runtime')));
  add(await checkRoot(settings.text('root')));
  add(await checkServer(context));
  add(await checkSlowStart());
  const good = findings.every((finding) => finding.level !== 'fail');
  if (context.json) context.printJson({ ok: good, findings });
  return good ? 0 : 1;
}
