// A small image with something of everything, made by umoci in a second: directories, hard links, every
// kind of entry, attributes, names and targets that are no text, a time before 1970. Larger ones are in images.ts.
import { join } from 'node:path';
import { must } from './proc.ts';

/** The image as an OCI layout `lay` below `dir`, tag 1. */
export async function layeredImage(dir: string): Promise<string> {
  const script = `
    set -e
    mkdir image-root && cd image-root
    mkdir -p etc/conf.d/deep old/below app
    echo hosts >etc/hosts; echo a >etc/conf.d/a; echo b >etc/conf.d/deep/b
    echo one >app/one; ln app/one app/two; ln -s one app/link; echo rest >app/rest
    echo x >old/x; echo y >old/below/y; setfattr -n user.kept -v yes old/x
    head -c 3000000 /dev/urandom >app/large
    printf x >app/$'\\xff'; ln -s $'\\xff' app/bytes; touch -d 1960-01-02 app/early
    chmod 4755 app/rest; chown 12:34 app/large; mkfifo app/pipe; mknod app/null c 1 3
    cd .. && umoci init --layout lay && umoci new --image lay:1
    umoci insert --image lay:1 image-root /
  `;
  await must('bash', ['-c', script], { cwd: dir, timeoutMs: 120_000 });
  return join(dir, 'lay');
}
