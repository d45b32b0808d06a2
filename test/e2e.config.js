// The quick end-to-end tests: real servers, daemons and mounts. Two files at a time, each test in a
// world of its own: most of them wait for a transfer of a given rate. The tests of one file take turns, which
// each of them asks for (test.serial): ava's option `serial` would also run one file at a time.
export default {
  extensions: ['ts'],
  files: ['test/e2e/**/*.test.ts'],
  timeout: '5m',
  concurrency: 2,
  workerThreads: false,
};
