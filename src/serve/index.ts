// What the other stages use of this one.

export { ImageStore, withStore } from './image-store.ts';
export { parseListen } from './listen.ts';
export { parseCatalogRef } from './names.ts';
export { parseRate } from './rate.ts';
export { type RunningServer, type ServerOptions, startServer } from './server.ts';
