// The quick end-to-end tests: real servers, daemons and mounts, one test file after the other.
export default {
  extensions: ['ts'],
  files: ['test/e2e/**/*.test.ts'],
  timeout: '5m',
  concurrency: 1,
  serial: true,
  workerThreads: false,
};
