// What takes too long for every change: more images, long transfers, many kills.
export default {
  extensions: ['ts'],
  files: ['test/long/**/*.test.ts'],
  timeout: '15m',
  concurrency: 1,
  serial: true,
  workerThreads: false,
};
