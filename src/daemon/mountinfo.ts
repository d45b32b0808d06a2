// Reads /proc/self/mountinfo (proc_pid_mountinfo(5)): the one way to learn about mounts that never
// touches them, so a daemon may use it for its own.

/** One line of mountinfo. */
export interface MountInfo {
  mountId: number;
  /** Absolute path. */
  mountPoint: string;
  fsType: string;
  source: string;
  superOptions: string;
}

/** mountinfo writes space, tab, newline and backslash as octal escapes. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** Parses the whole file, given as text; lines of an unknown form are left out. */
export function parseMountInfo(text: string): MountInfo[] {
  const mounts: MountInfo[] = [];
  for (const line of text.split('\n')) {
    const fields = line.split(' ');
    const dash = fields.indexOf('-', 6);
    const [fsType, source, superOptions] = fields.slice(dash + 1);
    if (dash < 0 || fields[4] === undefined || fsType === undefined) continue;
    mounts.push({
      mountId: Number(fields[0]),
      mountPoint: unescapeOctal(fields[4]),
      fsType,
      source: unescapeOctal(source ?? ''),
      superOptions: unescapeOctal(superOptions ?? ''),
    });
  }
  return mounts;
}

/** The topmost mount at exactly this path, or undefined. */
export function mountAt(mounts: MountInfo[], path: string): MountInfo | undefined {
  return mounts.findLast((m) => m.mountPoint === path);
}

/** True where `path` is `directory` or lies below it. */
export function isBelow(path: string, directory: string): boolean {
  return path === directory || path.startsWith(directory === '/' ? '/' : `${directory}/`);
}

/** Value of one option in a mount's super options, unescaped by overlayfs' rules (`\` before `,` `:` `\`). */
export function mountOption(mount: MountInfo, name: string): string | undefined {
  for (const option of mount.superOptions.split(/(?<!\\),/)) {
    if (option.startsWith(`${name}=`)) return option.slice(name.length + 1).replace(/\\(.)/g, '$1');
  }
  return undefined;
}
