// Unit tests stand beside the stage they cover (src/**/*.test.ts); model, fault and end-to-end
// tests stand under test/. TypeScript runs by Node's own type stripping, no compile step.
export default {
  extensions: ['ts'],
  files: ['src/**/*.test.ts', 'test/unit/**/*.test.ts'],
  timeout: '5m',
  concurrency: 2,
  workerThreads: false,
};
