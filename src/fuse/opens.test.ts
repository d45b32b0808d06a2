// Kernels by their version.
import test from 'ava';
import { canOpenAlone, mayOpenAlone } from './opens.ts';

test('opens are left to kernels that are known to keep the inode', (t) => {
  const good = [
    '6.18.3',
    '6.18.44-fc-v669',
    '6.19.0-rc1',
    '6.19',
    '7.0.1',
    '6.12.64',
    '6.12.101+deb13-amd64',
  ];
  const bad = [
    '6.18.2',
    '6.18.0',
    '6.18',
    '6.17.13',
    '6.14.0-37-generic',
    '6.12.63',
    '6.9.1',
    '6.1.0-44-amd64',
    '5.10.5',
  ];
  for (const version of good) t.true(canOpenAlone(version), version);
  for (const version of bad) t.false(canOpenAlone(version), version);
  t.false(canOpenAlone('unheard of'));
});

test('whoever wants to see opens sees them on any kernel', (t) => {
  t.false(mayOpenAlone('seen'));
  t.is(mayOpenAlone('auto'), canOpenAlone());
});
