// Limits that intake puts on what an image may hold; each is Linux's own, or far above any real
// image and there so that a hostile one cannot exhaust memory or run for ever.

/** Longest file name in bytes (NAME_MAX). */
export const NAME_MAX = 255;
/** Longest symlink target in bytes (PATH_MAX without its NUL). */
export const TARGET_MAX = 4095;
/** Longest path of an entry in bytes. */
export const PATH_BYTES_MAX = 65536;
/** Largest single file, holes included, in bytes. */
export const FILE_BYTES_MAX = 2 ** 40;
/** Largest extended header (pax records, GNU long name) in bytes. */
export const EXTENSION_BYTES_MAX = 8 << 20;
/** Most pieces of one sparse file. */
export const SPARSE_PIECES_MAX = 1 << 20;
/** Device numbers as the kernel packs them: 12 bits major, 20 bits minor. */
export const MAJOR_MAX = 0xfff;
export const MINOR_MAX = 0xfffff;
/** Largest manifest or index, and largest image config, in bytes. */
export const MANIFEST_BYTES_MAX = 4 << 20;
export const CONFIG_BYTES_MAX = 8 << 20;
/** Most layers (the TOC counts them in 16 bits). */
export const LAYERS_MAX = 65535;
