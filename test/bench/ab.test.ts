import { compareArms, planArms, planMemory, type Arm, type Comparison } from '../../lib/bench/ab';
import {
  benchRows,
  describeOrigin,
  describePlanned,
  describeRows,
  describeVerdict,
  formatCsv,
  planRows,
  type BenchOrigin,
} from '../../lib/bench/ab-report';
import { armAttention } from '../../lib/bench/arms';
import { judge } from '../../lib/bench/gate';
import type { BenchTest } from '../../lib/bench/grammar';
import { planLoad } from '../../lib/load-model';
import { resolveLoadOptions, type LoadOptions } from '../../lib/load-options';
import { tiny } from '../cli/cli';

const dummy: LoadOptions = {
  loadFormat: 'dummy',
  configOverrides: { layers: 2, experts: 4, zeroExperts: 2 },
};
const origin: BenchOrigin = {
  ...{ build_commit: 'abc', build_version: '1.2.3', backend: 'cpu', gpu_info: 'a "CPU"' },
  ...{ driver: null, test_time: '2026-11-22T00:00:00Z', model_type: 'tiny', model_size: 2 ** 20 },
  ...{ model_n_params: 1, weights: 'dummy', depth_fill: 'random', decode_graphs: false },
  ...{ prefix_cache: false, seed: 1 },
};
const limits = {
  ...{ bytes: 1e15, flops: 1e18, copyBytes: 1, readBytes: 1, writeBytes: 1, emptyLaunchNs: 0 },
};
const chunk = 128;
const tests: BenchTest[] = [
  { prompt: 300, generate: 0, depth: 0, batch: 2, chunk },
  { prompt: 0, generate: 5, depth: 1500, batch: 2, chunk },
  { prompt: 100, generate: 3, depth: 0, batch: 1, chunk },
];
const run = { repetitions: 2, warmUp: true, seed: 3, randomDepth: true };

describe('full and LoZA side by side', () => {
  let arms: Arm[];
  let comparison: Comparison;
  beforeAll(async () => {
    arms = await planArms(tiny, ['full', '1010'], tests, dummy, 'cpu');
    comparison = await compareArms(tiny, arms, tests, { limits, attention: true, run });
  }, 60_000);

  test('pass the gate, and have a row for each test', () => {
    expect(comparison.gate).toMatchObject({ passed: true, problems: [] });
    expect(comparison.gate.similarity).toBeGreaterThan(0.999);
    const rows = benchRows(comparison, origin);
    expect(rows.map(({ test, attention }) => `${test} ${attention}`)).toEqual([
      ...['pp300 full', 'pp300 1010', 'tg5 @ d1500 full', 'tg5 @ d1500 1010'],
      ...['pp100+tg3 full', 'pp100+tg3 1010'],
    ]);
    const [prompt, , , generation] = rows;
    expect(prompt).toMatchObject({ speedup: null, user_ts: null, batch_size: 2, n_ubatch: 128 });
    expect(prompt?.samples_ns).toHaveLength(2);
    expect(prompt?.avg_ts).toBeGreaterThan(0);
    expect(prompt?.ttft_ms).toBeGreaterThan(0);
    expect(prompt?.ttft_ms).toBeLessThanOrEqual((prompt?.avg_ns ?? 0) / 1e6);
    expect(generation).toMatchObject({ ttft_ms: null, layer_type: '1010' });
    expect(generation?.gpu_ts).toBeCloseTo(2 * (generation?.user_ts ?? 0), 6);
    expect(generation?.speedup).toBeGreaterThan(0);
    for (const row of rows) {
      expect(row.step_p50_ms).toBeLessThanOrEqual(row.step_p99_ms);
      expect(row.attention_share).toBeGreaterThan(0);
      expect(row.attention_share).toBeLessThan(1);
      expect(row.roofline_share).toBeGreaterThan(0);
      expect(row.roofline_share).toBeLessThan(0.1); // of limits beyond any machine
    }
  });

  test('say what the KV cache holds, as the plan did', () => {
    const rows = benchRows(comparison, origin);
    const planned = planRows(arms, tests);
    expect(planned.map(({ attention }) => attention)).toEqual(['full', '1010']);
    planned.forEach(({ attention, tests: lines }) => {
      const measured = rows.filter((row) => row.attention === attention);
      expect(lines.map(({ kv_resident_bytes }) => kv_resident_bytes)).toEqual(
        measured.map(({ kv_resident_bytes }) => kv_resident_bytes),
      );
    });
    expect(rows.filter(({ kv_freed_bytes }) => kv_freed_bytes > 0)).toEqual([
      expect.objectContaining({ test: 'tg5 @ d1500', attention: '1010' }),
    ]);
    const text = describePlanned(planned, 2 ** 30);
    expect(text).toContain('nothing timed');
    expect(text).toMatch(/\| tg5 @ d1500 \| 1010 +\| +2 \|/);
  });

  test('peak memory is as predicted', () => {
    const [full] = comparison.arms;
    const { predictedPeak } = planMemory(arms[0] as Arm, tests);
    expect(full?.memory.predictedPeak).toBe(predictedPeak);
    expect(Math.abs(predictedPeak / (full?.memory.peak ?? 0) - 1)).toBeLessThan(0.1);
  });

  test('as tables and as CSV', () => {
    const rows = benchRows(comparison, origin);
    const text = `${describeOrigin(rows, describeVerdict(comparison))}\n${describeRows(rows)}`;
    expect(text).toContain('random numbers, not computed');
    expect(text).toContain('full 0000, 1010 1010');
    expect(text).toMatch(/\| pp300 +\| 1010 +\| +2 \| +\S+ ± \S+ \| +\S+ ± \S+ × \|/);
    const other = describeRows(rows.map((row, i) => (i === 1 ? { ...row, n_ubatch: 64 } : row)));
    expect(other).toMatch(/\| pp300, steps of 64 +\| 1010 /);
    const lines = formatCsv(rows).split('\n');
    expect(lines).toHaveLength(7);
    expect(lines[0]).toMatch(/^build_commit,.*,avg_ts,/);
    expect(lines[1]).toContain('"a ""CPU"""');
    expect(lines[0]).not.toContain('samples');
  });
});

test('depths of real weights are computed, and the tokens are those of the seed', async () => {
  const depth: BenchTest[] = [{ prompt: 0, generate: 2, depth: 200, batch: 1, chunk: 64 }];
  const arms = await planArms(tiny, ['loza'], depth, {}, 'cpu');
  const only = { ...run, repetitions: 1, warmUp: false, randomDepth: false };
  const options = { limits: undefined, attention: false, run: only };
  const { gate, arms: results } = await compareArms(tiny, arms, depth, options);
  expect(gate).toEqual({ passed: true, problems: [], similarity: undefined });
  expect(results[0]?.layerType).toBe('11001100');
  const [row] = benchRows({ gate, arms: results }, origin);
  expect(row).toMatchObject({ attention_share: null, roofline_share: null, speedup: null });
}, 30_000);

test('the gate names what is wrong', () => {
  const good = { finite: true, tokens: [1, 2], eagerTokens: [1, 2] };
  const logits = Float32Array.from([1, 2, 3]);
  const arm = (name: string, change: object) => ({ name, gate: { ...good, logits, ...change } });
  expect(judge([arm('full', {}), arm('loza', {})])).toMatchObject({ passed: true });
  const bad = judge([
    arm('full', { finite: false }),
    arm('loza', { eagerTokens: [1, 3], logits: Float32Array.from([3, -2, 1]) }),
  ]);
  expect(bad.passed).toBe(false);
  expect(bad.problems).toEqual([
    'full: logits are not finite',
    expect.stringContaining('recorded and eager decode steps differ, 1 2 against 1 3'),
    expect.stringContaining('the arms differ'),
  ]);
  expect(describeVerdict({ gate: bad })).toMatch(/^Not timed: full: logits/);
  const nan = judge([arm('full', {}), arm('loza', { logits: Float32Array.from([1, NaN, 3]) })]);
  expect(nan.passed).toBe(false);
});

describe('arms', () => {
  const plan = (dir: string, options: LoadOptions) => planLoad(dir, resolveLoadOptions(options));

  test('loza is what the config says, or every other attention of dummy weights', async () => {
    const configured = await plan(tiny, {});
    const paper = { sinkBlocks: 1, localBlocks: 7 };
    expect(armAttention('full', configured)).toBe('full');
    expect(armAttention('loza', configured)).toEqual({ layerType: '11001100', ...paper });
    expect(armAttention('loza', configured, { localBlocks: 3 })).toMatchObject({
      ...{ sinkBlocks: 1, localBlocks: 3 },
    });
    expect(armAttention('0101', configured)).toEqual({ layerType: '0101' });
    const preset = await plan('longcat-flash', { ...dummy, configOverrides: { layers: 2 } });
    expect(armAttention('loza', preset)).toEqual({ layerType: '1010' });
    const real = {
      ...preset,
      checkpoint: { ...preset.checkpoint, files: [{ path: 'a.safetensors', bytes: 1 }] },
    };
    expect(() => armAttention('loza', real)).toThrow(/which attentions stream/);
  });
});
