// containerd's filter language.
import test from 'ava';
import { parseFilters } from './filter.ts';
import { KIND, type Snapshot } from './types.ts';

const SNAPSHOT = {
  key: 'k8s.io/12/sha256:abc',
  parent: 'k8s.io/11/sha256:def',
  kind: KIND.Committed,
  labels: { 'containerd.io/snapshot.ref': 'sha256:abc', 'a.b': 'x, y', plain: 'v' },
} as unknown as Snapshot;

const matches = (...filters: string[]) => parseFilters(filters)(SNAPSHOT);

test('what containerd asks for a layer that comes lazily', (t) => {
  const ref = 'labels."containerd.io/snapshot.ref"';
  t.true(matches(`${ref}==sha256:abc,parent=="k8s.io/11/sha256:def"`));
  t.false(matches(`${ref}==sha256:abc,parent==""`));
  t.false(matches(`${ref}==sha256:abd,parent=="k8s.io/11/sha256:def"`));
});

test('all selectors of a filter must match, and one of several filters', (t) => {
  t.true(matches());
  t.true(matches(''));
  t.true(matches('kind==committed'));
  t.false(matches('kind==active'));
  t.true(matches('kind==active', 'name~=abc$'));
  t.false(matches('kind==committed,name==other'));
  t.true(matches('kind!=active , name~=/^k8s\\.io\\//'));
  t.true(matches('name~=|/12/|'));
});

test('presence, quotes and escapes', (t) => {
  t.true(matches('labels.plain'));
  t.true(matches('labels."a.b"'));
  t.true(matches('labels.a.b'), 'a label whose name has a dot');
  t.false(matches('labels.other'));
  t.true(matches('labels."a.b"=="x, y"'));
  t.true(matches('labels."a\\u002eb"') === false);
  t.true(matches('labels.other==""'));
  t.true(matches('labels.other!=v'));
  t.false(matches('size==3'), 'a field that snapshots do not have');
});

test('what is no filter is refused, with its place', (t) => {
  for (const text of [
    'kind==',
    '==x',
    'kind==a b',
    'labels."open',
    'kind===a,,',
    'name~=/(/',
    'a$',
  ]) {
    const error = t.throws(() => parseFilters([text]), undefined, text);
    t.is((error as { kind?: string }).kind, 'usage', text);
  }
  t.throws(() => parseFilters(['x'.repeat(5000)]), { message: /longer/ });
});
