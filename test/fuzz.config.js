// Fuzz tests, bounded by FUZZ_MS milliseconds each.
export default {
  extensions: ['ts'],
  files: ['test/fuzz/**/*.test.ts'],
  timeout: '30m',
  concurrency: 2,
  workerThreads: false,
};
