// Which connection gets the next piece, and which is taken for dead.
import test from 'ava';
import { PieceRoutes, type Route, type Underway } from './piece-routes.ts';

const KIB = 1 << 10;

/** Routes under a clock of their own, each with one request under way. */
function makeRoutes(connections: number) {
  const clock = { ms: 1000 };
  const routes = new PieceRoutes<Underway>(connections, 3000, () => clock.ms);
  const all: Route<Underway>[] = [];
  const attempts = Array.from({ length: connections }, () => ({ silentMs: 3000 }));
  for (const attempt of attempts) {
    const route = routes.next()!;
    route.askedBytes += 10;
    routes.begin(route, attempt);
    all.push(route);
  }
  return { clock, routes, all, attempts };
}

const indices = (routes: Route<Underway>[]) => routes.map(({ connection }) => connection);

test('one that is silent while others bring much is taken for dead, after the time that its request has', (t) => {
  const { clock, routes, all } = makeRoutes(3);
  for (const route of all) routes.moved(route);
  clock.ms += 2900;
  routes.moved(all[0]!, 300 * KIB);
  t.deepEqual(routes.silent(undefined), []);
  clock.ms += 100;
  t.deepEqual(indices(routes.silent(undefined)), [1, 2]);
  // What has been asked for again has more time.
  const [old] = all[1]!.attempts;
  routes.end(all[1]!, old!);
  routes.begin(all[1]!, { silentMs: 6000 });
  clock.ms += 5900;
  routes.moved(all[0]!, 300 * KIB);
  t.deepEqual(indices(routes.silent(undefined)), [2]);
  clock.ms += 100;
  t.deepEqual(indices(routes.silent(undefined)), [1, 2]);
});

test('where connections take turns on a slow line, none is taken for dead', (t) => {
  const { clock, routes, all, attempts } = makeRoutes(3);
  for (const route of all) routes.moved(route);
  clock.ms += 4000;
  routes.moved(all[0]!, 100 * KIB);
  t.deepEqual(routes.silent(undefined), []);
  // Nobody else brings anything now, and it has lived.
  routes.end(all[0]!, attempts[0]!);
  t.deepEqual(indices(routes.silent(undefined)), [1, 2]);
});

test('where none lives, what is awaited first is asked for again, and no more', (t) => {
  const { clock, routes, all, attempts } = makeRoutes(3);
  for (const route of all) routes.moved(route, KIB);
  clock.ms += 3000;
  t.deepEqual(indices(routes.silent(attempts[1])), [1]);
  t.deepEqual(routes.silent({ silentMs: 3000 }), []);
});

test('while answers wait to be read there is no silence', async (t) => {
  const { clock, routes, all } = makeRoutes(2);
  for (const route of all) routes.moved(route);
  const read = Promise.withResolvers<void>();
  const held = routes.hold(all[1]!, read.promise);
  clock.ms += 10_000;
  routes.moved(all[0]!, 300 * KIB);
  t.deepEqual(routes.silent(undefined), []);
  read.resolve();
  await held;
  clock.ms += 2999;
  routes.moved(all[0]!, 300 * KIB);
  t.deepEqual(routes.silent(undefined), []);
  clock.ms += 1;
  t.deepEqual(indices(routes.silent(undefined)), [1]);
});

test('what one owed goes to one that lives, and nothing new to one that is down', (t) => {
  const { clock, routes, all } = makeRoutes(4);
  for (const route of all) routes.moved(route);
  routes.down(all[0]!);
  t.is(routes.other(all[1]!, 'live'), all[2]);
  routes.begin(all[2]!, { silentMs: 3000 });
  t.is(routes.other(all[1]!, 'live'), all[3]);
  routes.leave(3);
  t.is(routes.other(all[1]!, 'live'), all[2]);
  clock.ms += 2000;
  t.is(routes.other(all[1]!, 'live'), undefined);
  t.is(routes.other(all[1]!, 'up'), all[2]);
  t.is(routes.next(), all[1]);
  for (const index of [1, 2]) routes.down(all[index]!);
  // Where none works, any of them may again.
  t.is(routes.next(), all[0]);
});
