// The quick end-to-end tests: real servers, daemons and mounts. Three files at a time, each test in a
// world of its own: most of them wait for a transfer of a given rate.
export default {
  extensions: ['ts'],
  files: ['test/e2e/**/*.test.ts'],
  timeout: '5m',
  concurrency: 3,
  serial: true,
  workerThreads: false,
};
