import { compareRuns, describeComparison, parseRun } from '../../lib/bench/compare-runs';

const row = (attention: string, avg_ts: number, stddev_ts: number) => ({
  ...{ n_prompt: 512, n_gen: 0, n_depth: 0, batch_size: 1, n_ubatch: 512, test: 'pp512' },
  ...{ attention, avg_ts, stddev_ts, build_commit: 'abc', gpu_info: 'H100' },
});

test('rows come from an array or from lines', () => {
  const rows = [row('full', 100, 1), row('loza', 200, 1)];
  expect(parseRun(JSON.stringify(rows), 'a.json')).toEqual(rows);
  const lines = rows.map((one) => JSON.stringify(one)).join('\n');
  expect(parseRun(`${lines}\n`, 'a.jsonl')).toEqual(rows);
  for (const bad of ['', '[]', '{}', '[1]', 'text', '[{"n_prompt": 1}]']) {
    expect(() => parseRun(bad, 'b.json')).toThrow(/b\.json holds no rows/);
  }
});

test('ratios of tests that both have, with their spread', () => {
  const before = [row('full', 100, 3), row('1010', 1, 0)];
  const comparison = compareRuns(before, [row('full', 110, 4.4), row('loza', 1, 0)]);
  expect(comparison.rows).toHaveLength(1);
  expect(comparison.rows[0]?.ratio.mean).toBeCloseTo(1.1, 12);
  expect(comparison.rows[0]?.ratio.sd).toBeCloseTo(1.1 * Math.hypot(0.03, 0.04), 12);
  expect(comparison.unmatched).toEqual(['pp512 loza', 'pp512 1010']);
  const text = describeComparison(comparison);
  expect(text).toMatch(
    /\| pp512 +\| full +\| +1 \| 100\.0 ± 3\.0 \| 110\.0 ± 4\.4 \| 1\.100 ± 0\.055 \|/,
  );
  expect(text).toContain('In one file only: pp512 loza, pp512 1010.');
  expect(text).not.toContain('different devices');
});

test('tests that differ in the tokens of a step are told apart', () => {
  const rows = [row('full', 1, 0), { ...row('full', 2, 0), n_ubatch: 8192 }];
  const comparison = compareRuns(rows, [...rows, { ...row('full', 3, 0), n_ubatch: 64 }]);
  expect(comparison.rows.map(({ test }) => test)).toEqual([
    'pp512, steps of 512',
    'pp512, steps of 8192',
  ]);
  expect(comparison.unmatched).toEqual(['pp512, steps of 64 full']);
});

test('another device is said', () => {
  const after = [{ ...row('full', 1, 0), gpu_info: 'H20' }];
  expect(describeComparison(compareRuns([row('full', 1, 0)], after))).toContain(
    'different devices',
  );
});
