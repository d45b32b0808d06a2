// Pages that people look at, in a real browser: Debian's chromium, headless. One browser for each file.
export default {
  extensions: ['ts'],
  files: ['test/browser/**/*.test.ts'],
  timeout: '5m',
  concurrency: 1,
  serial: true,
  workerThreads: false,
};
