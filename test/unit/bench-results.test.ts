// What the wide-area bench makes of its samples: medians, ratios, budgets, plots and the page.
import test from 'ava';
import { makeRow } from '../../bench/lib/rows.ts';
import { resultsPage } from '../../bench/results/page.ts';
import { escapeXml, niceEnd, readyPlot } from '../../bench/results/plots.ts';
import {
  cells,
  type Line,
  medianRatio,
  readLines,
  rowsOf,
  type Sample,
} from '../../bench/startup/samples.ts';

function sample(more: Partial<Sample>): Sample {
  return {
    ...{ kind: 'sample', service: 'redis', system: 'containerd', mode: 'deploy', rtt_ms: 150 },
    ...{ round: 0, ready_ms: 10_000, bytes_received: 70e6, bytes_sent: 1e6, connects: 5 },
    breakdown: {},
    ...more,
  };
}

const SAMPLES = [
  sample({ ready_ms: 9000 }),
  sample({ ready_ms: 10_000, round: 1 }),
  sample({ ready_ms: 14_000, round: 2 }),
  sample({ system: 'firstlight-traced', ready_ms: 2000, bytes_received: 9e6, connects: 8 }),
  sample({ system: 'curl-bundle', ready_ms: 4000 }),
  sample({ service: 'nginx', ready_ms: 8000 }),
  sample({ service: 'nginx', system: 'firstlight-traced', ready_ms: 2400 }),
  sample({ mode: 'update', ready_ms: 10_000 }),
  sample({ mode: 'update', system: 'firstlight-traced', ready_ms: 900 }),
  sample({ service: 'alone', system: 'firstlight-traced', ready_ms: 100 }),
];

test('cells are medians with their spread', (t) => {
  const [first] = cells(SAMPLES);
  t.like(first, {
    service: 'redis',
    system: 'containerd',
    readyMs: 10_000,
    minMs: 9000,
    maxMs: 14_000,
  });
  t.is(first!.samples.length, 3);
});

test('the ratio is the median over those services that both systems have', (t) => {
  const which = { system: 'firstlight-traced', mode: 'deploy', rttMs: 150 } as const;
  t.is(medianRatio(cells(SAMPLES), which, 'containerd'), 0.25);
  t.is(medianRatio(cells(SAMPLES), which, 'curl-bundle'), 0.5);
  t.is(medianRatio(cells(SAMPLES), { ...which, rttMs: 2 }, 'containerd'), undefined);
});

test('rows carry the budgets of the deploy and the update at 150 ms', (t) => {
  const rows = rowsOf(cells(SAMPLES)).map((row) => makeRow('startup', row));
  const named = (name: string) => rows.find(({ row }) => row === name);
  t.like(named('median-deploy-150ms-firstlight-traced-to-containerd'), { value: 0.25, met: true });
  t.like(named('median-update-150ms-firstlight-traced-to-containerd'), { value: 0.09, met: false });
  t.like(named('median-deploy-150ms-firstlight-traced-to-curl-bundle'), { budget: 1, met: true });
  t.like(named('redis-deploy-150ms-firstlight-traced'), { ratio: 0.2, baseline: 'containerd' });
  t.is(new Set(rows.map(({ row }) => row)).size, rows.length, 'each row stands once');
  // Nobody promises anything for other links.
  const near = rowsOf(cells(SAMPLES.map((each) => ({ ...each, rtt_ms: 2 }))));
  t.true(near.every(({ budget }) => budget === undefined));
});

test('the page needs nothing else, shows failures, and takes no text for markup', (t) => {
  const lines: Line[] = [
    ...SAMPLES,
    {
      ...{ kind: 'failure', service: 'redis', system: 'containerd', mode: 'deploy', rtt_ms: 150 },
      ...{ round: 3, error: '<script>alert(1)</script>' },
    } as Line,
    { kind: 'link', rtt_ms: 150, connect_ms: 151.3, mbit_per_second: 96.5, relay_cpu: 0.07 },
  ];
  const text = lines.map((line) => JSON.stringify(line)).join('\n');
  const page = resultsPage(readLines(text), []);
  t.false(/<script|https?:\/\/(?!www\.w3\.org)/.test(page));
  t.true(page.includes(escapeXml('<script>')));
  t.true(page.includes('151.3'));
  t.true(page.includes('0.300'));
});

test('a plot has a bar for each system of each service', (t) => {
  const svg = readyPlot(cells(SAMPLES), 'deploy', 150);
  t.is(svg.match(/<rect /g)?.length, 6);
  t.is(niceEnd(14), 20);
  t.is(niceEnd(0.7), 1);
  t.is(niceEnd(0), 1);
});
