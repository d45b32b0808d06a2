// OCI layouts, docker-archives and rootfs tars, made here file by file.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import test from 'ava';
import type { ErrorKind } from '../errors/errors.ts';
import { sha256Digest } from './digest.ts';
import { openDockerArchive } from './docker-archive.ts';
import { MEDIA } from './manifest.ts';
import { mergeImage } from './merge.ts';
import { openOciLayout } from './oci-layout.ts';
import { openRootfs } from './rootfs.ts';
import type { ImageSource } from './source.ts';
import { MemorySink, names, type Packed, pack, view } from './testkit.ts';
import { failure } from './testkit-registry.ts';

const AMD64 = { platform: 'linux/amd64' };

async function inTemp<T>(body: (dir: string) => Promise<T>): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), 'firstlight-local-'));
  try {
    return await body(dir);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** Merges an opened image and closes it. */
async function take(opening: Promise<ImageSource>) {
  const source = await opening;
  try {
    const sink = new MemorySink();
    return { source, image: view((await mergeImage(source, sink)).root, sink) };
  } finally {
    await source.close();
  }
}

/** The files of an OCI layout, by path. */
class Layout {
  readonly files = new Map<string, Buffer>([
    ['oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')],
  ]);
  readonly entries: object[] = [];

  put(bytes: Buffer, mediaType: string) {
    const digest = sha256Digest(bytes);
    this.files.set(`blobs/sha256/${digest.slice(7)}`, bytes);
    return { mediaType, digest, size: bytes.length };
  }

  image(architecture: string, layers: Buffer[]) {
    const diff_ids = layers.map(sha256Digest);
    const config = { os: 'linux', architecture, rootfs: { type: 'layers', diff_ids } };
    const manifest = {
      schemaVersion: 2,
      config: this.put(Buffer.from(JSON.stringify(config)), MEDIA.ociConfig),
      layers: layers.map((tar) => this.put(tar, MEDIA.ociLayer)),
    };
    return this.put(Buffer.from(JSON.stringify(manifest)), MEDIA.ociManifest);
  }

  add(descriptor: object, tag?: string, name?: string): void {
    const annotations = {
      ...(tag === undefined ? {} : { 'org.opencontainers.image.ref.name': tag }),
      ...(name === undefined ? {} : { 'io.containerd.image.name': name }),
    };
    this.entries.push({ ...descriptor, annotations });
    const index = { schemaVersion: 2, manifests: this.entries };
    this.files.set('index.json', Buffer.from(JSON.stringify(index)));
  }

  async write(dir: string): Promise<string> {
    for (const [path, bytes] of this.files) {
      await mkdir(dirname(join(dir, path)), { recursive: true });
      await writeFile(join(dir, path), bytes);
    }
    return dir;
  }

  tar(more: Packed[] = []): Promise<Buffer> {
    const files = [...this.files].map(([name, body]): Packed => ({ name, body }));
    return pack([...files, ...more]);
  }
}

test('an OCI layout: tags, nested indexes, platforms', async (t) => {
  await inTemp(async (dir) => {
    const layout = new Layout();
    const one = layout.image('amd64', [await pack(names('a')), await pack(names('b'))]);
    layout.add(one, 'one');
    const inner = {
      manifests: [
        {
          ...layout.image('amd64', [await pack(names('x'))]),
          platform: { os: 'linux', architecture: 'amd64' },
        },
        {
          ...layout.image('arm64', [await pack(names('y'))]),
          platform: { os: 'linux', architecture: 'arm64' },
        },
      ],
    };
    const nested = layout.put(Buffer.from(JSON.stringify(inner)), MEDIA.ociIndex);
    const outer = layout.put(Buffer.from(JSON.stringify({ manifests: [nested] })), MEDIA.ociIndex);
    layout.add(outer, 'two');
    await layout.write(dir);
    const { source, image } = await take(openOciLayout(dir, 'one', AMD64));
    t.deepEqual(image.paths(), ['a', 'b']);
    t.is(source.digest, one.digest);
    t.is(source.name, 'one');
    const arm = await take(openOciLayout(dir, 'two', { platform: 'linux/arm64' }));
    t.deepEqual(arm.image.paths(), ['y']);

    const cases: [Promise<unknown>, ErrorKind, RegExp][] = [
      [openOciLayout(dir, 'three', AMD64), 'not-found', /no image 'three': it has one, two/],
      [openOciLayout(dir, undefined, AMD64), 'usage', /several images: it has one, two/],
      [
        openOciLayout(dir, 'two', { platform: 'linux/s390x' }),
        'platform',
        /it has linux\/amd64, linux\/arm64/,
      ],
      [
        openOciLayout(dir, 'one', { platform: 'linux/arm64' }),
        'platform',
        /it has linux\/amd64$|it has linux\/amd64;/,
      ],
      [openOciLayout(join(dir, 'blobs'), 'one', AMD64), 'not-found', /not an OCI image layout/],
      [openOciLayout(join(dir, 'none'), 'one', AMD64), 'not-found', /not an OCI image layout/],
    ];
    for (const [promise, kind, message] of cases) {
      const error = await failure(promise);
      t.is(error.kind, kind, error.line);
      t.regex(error.line, message);
    }
  });
});

test('an OCI layout with a missing, changed or cut blob is refused', async (t) => {
  await inTemp(async (dir) => {
    const layout = new Layout();
    layout.add(layout.image('amd64', [await pack(names('a'))]));
    await layout.write(dir);
    t.deepEqual((await take(openOciLayout(dir, undefined, AMD64))).image.paths(), ['a']);
    for (const [path, bytes] of layout.files) {
      if (!path.startsWith('blobs/')) continue;
      const changed = Buffer.from(bytes);
      changed[bytes.length - 3]! ^= 1;
      for (const [wrong, kind] of [
        [changed, 'corrupt'],
        [bytes.subarray(0, bytes.length - 1), 'corrupt'],
        [Buffer.concat([bytes, bytes]), 'corrupt'],
        [undefined, 'not-found'],
      ] as const) {
        if (wrong === undefined) await rm(join(dir, path));
        else await writeFile(join(dir, path), wrong);
        const error = await failure(take(openOciLayout(dir, undefined, AMD64)));
        t.is(error.kind, kind, path);
        if (wrong === undefined) t.regex(error.line, /blobs\/sha256\/\w+ is missing; the image is/);
      }
      await writeFile(join(dir, path), bytes);
    }
    t.deepEqual((await take(openOciLayout(dir, undefined, AMD64))).image.paths(), ['a']);
  });
});

test('a config or manifest that still makes sense but is another one is refused by its digest', async (t) => {
  await inTemp(async (dir) => {
    const layout = new Layout();
    layout.add(layout.image('amd64', [await pack(names('a'))]));
    for (const [from, to] of [
      ['"os":"linux"', '"os":"linuz"'],
      ['"schemaVersion":2', '"schemaVersion":3'],
    ] as const) {
      await layout.write(dir);
      for (const [path, bytes] of layout.files) {
        const text = bytes.toString('latin1');
        if (!path.startsWith('blobs/') || !text.includes(from)) continue;
        await writeFile(join(dir, path), Buffer.from(text.replace(from, to), 'latin1'));
      }
      const error = await failure(openOciLayout(dir, undefined, AMD64));
      t.is(error.kind, 'corrupt');
      t.regex(error.line, /the digest is sha256:/, from);
    }
  });
});

/** A docker-archive of the older form. */
async function archive(tags: string[], extra: Packed[] = []): Promise<Packed[]> {
  const layer = await pack(names('a'));
  const upper = await pack(names('b', '.wh.a'));
  const diff_ids = [layer, upper, upper].map(sha256Digest);
  const config = { os: 'linux', architecture: 'amd64', rootfs: { type: 'layers', diff_ids } };
  const saved = {
    Config: 'abc.json',
    RepoTags: tags,
    Layers: ['1/layer.tar', '2/layer.tar', '3/layer.tar'],
  };
  return [
    { name: '1/', type: 'directory' },
    { name: '1/layer.tar', body: layer },
    { name: '2/layer.tar', body: upper },
    { name: '3/layer.tar', type: 'symlink', linkname: '../2/layer.tar' },
    { name: 'abc.json', body: JSON.stringify(config) },
    { name: 'manifest.json', body: JSON.stringify([saved]) },
    ...extra,
  ];
}

test('a docker-archive of the older form, links among its layers, plain and compressed', async (t) => {
  await inTemp(async (dir) => {
    const file = join(dir, 'x.tar');
    const tar = await pack(await archive(['app:1', 'h.example/app:2']));
    const digests = new Set<string>();
    for (const bytes of [tar, gzipSync(tar), zstdCompressSync(tar)]) {
      await writeFile(file, bytes);
      for (const tag of [undefined, 'app:1', 'docker.io/library/app:1', 'h.example/app:2', '@0']) {
        const { source, image } = await take(openDockerArchive(file, tag, AMD64));
        t.deepEqual(image.paths(), ['b']);
        t.is(source.layers.length, 3);
        t.is(source.name, 'app:1');
        t.is(sha256Digest(source.manifest), source.digest);
        digests.add(source.digest);
      }
    }
    t.is(digests.size, 1);
    const error = await failure(openDockerArchive(file, 'app:3', AMD64));
    t.is(error.kind, 'not-found');
    t.regex(error.line, /it has app:1, h\.example\/app:2/);
    t.is(
      (await failure(openDockerArchive(file, undefined, { platform: 'linux/arm64' }))).kind,
      'platform',
    );
  });
});

test('a docker-archive with an OCI layout in it keeps the digest of the image', async (t) => {
  await inTemp(async (dir) => {
    const file = join(dir, 'x.tar');
    const layout = new Layout();
    const one = layout.image('amd64', [await pack(names('one'))]);
    const two = layout.image('amd64', [await pack(names('two'))]);
    layout.add(one, '1', 'docker.io/library/app:1');
    layout.add(two, '2', 'docker.io/library/app:2');
    await writeFile(file, await layout.tar([{ name: 'manifest.json', body: '[]' }]));
    const { source, image } = await take(openDockerArchive(file, 'app:2', AMD64));
    t.deepEqual(image.paths(), ['two']);
    t.is(source.digest, two.digest);
    t.is(source.name, 'docker.io/library/app:2');
    t.is((await take(openDockerArchive(file, '@0', AMD64))).source.digest, one.digest);
    const several = await failure(openDockerArchive(file, undefined, AMD64));
    t.is(several.kind, 'usage');
    t.regex(several.line, /app:1, docker\.io\/library\/app:2/);
  });
});

test('broken docker-archives are refused with what is wrong', async (t) => {
  await inTemp(async (dir) => {
    const file = join(dir, 'x.tar');
    const good = await archive(['app:1']);
    const without = (name: string) => good.filter((entry) => entry.name !== name);
    const loop = { name: '2/layer.tar', type: 'symlink', linkname: '../3/layer.tar' } as const;
    const cases: [Buffer, ErrorKind, RegExp][] = [
      [await pack(without('manifest.json')), 'corrupt', /no manifest\.json; .*rootfs:FILE/],
      [await pack(without('abc.json')), 'not-found', /abc\.json is missing/],
      [await pack(without('2/layer.tar')), 'not-found', /layer\.tar is missing/],
      [await pack([...without('2/layer.tar'), loop]), 'not-found', /layer\.tar is missing/],
      [
        await pack([...without('manifest.json'), { name: 'manifest.json', body: '{' }]),
        'corrupt',
        /not JSON/,
      ],
      [(await pack(good)).subarray(0, 3000), 'corrupt', /middle of a file|manifest\.json/],
      [Buffer.alloc(2000, 'x'), 'corrupt', /checksum/],
    ];
    for (const [bytes, kind, message] of cases) {
      await writeFile(file, bytes);
      const error = await failure(openDockerArchive(file, undefined, AMD64));
      t.is(error.kind, kind, error.line);
      t.regex(error.line, message);
    }
    t.is((await failure(openDockerArchive(join(dir, 'none'), undefined, AMD64))).kind, 'not-found');
    t.is((await failure(openDockerArchive(dir, undefined, AMD64))).kind, 'usage');
  });
});

test('a rootfs tar: the same diff id in every compression, the same digest every time', async (t) => {
  await inTemp(async (dir) => {
    const tar = await pack(names('./', './bin/', './bin/sh', './lib -> usr/lib'));
    for (const bytes of [tar, gzipSync(tar), zstdCompressSync(tar)]) {
      const file = join(dir, 'base.tar');
      await writeFile(file, bytes);
      const { source, image } = await take(openRootfs(file, { platform: 'linux/arm' }));
      t.deepEqual(image.paths(), ['bin/', 'bin/sh', 'lib']);
      t.is(source.layers[0]!.diffId, sha256Digest(tar));
      t.is(source.layers[0]!.digest, sha256Digest(bytes));
      t.is(source.platform, 'linux/arm/v7');
      t.is(source.name, 'base');
      t.like(JSON.parse(source.config.toString()), {
        os: 'linux',
        architecture: 'arm',
        variant: 'v7',
      });
      const again = await openRootfs(file, { platform: 'linux/arm' });
      t.is(again.digest, source.digest);
      t.is(sha256Digest(again.manifest), again.digest);
    }
  });
});

test('a rootfs tar that changes between the two readings, is cut, or is none, is refused', async (t) => {
  await inTemp(async (dir) => {
    const file = join(dir, 'base.tar');
    const tar = await pack(names('a'));
    await writeFile(file, tar);
    const source = await openRootfs(file, AMD64);
    await writeFile(file, await pack(names('b')));
    t.is((await failure(mergeImage(source, new MemorySink()))).kind, 'corrupt');
    await writeFile(file, gzipSync(tar).subarray(0, 40));
    t.is((await failure(openRootfs(file, AMD64))).kind, 'corrupt');
    t.is((await failure(openRootfs(dir, AMD64))).kind, 'usage');
    t.is((await failure(openRootfs(join(dir, 'none'), AMD64))).kind, 'not-found');
  });
});
