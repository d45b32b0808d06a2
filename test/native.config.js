// Tests of the native part against the kernel: they mount, and so need root.
export default {
  extensions: ['ts'],
  files: ['test/native/**/*.test.ts'],
  timeout: '5m',
  concurrency: 2,
  workerThreads: false,
};
