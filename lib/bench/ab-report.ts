import { formatBytes, formatPercent, formatRate } from '../cli/format';
import type { Arm, ArmResult, Comparison, TestResult } from './ab';
import { planMemory } from './ab';
import { stepSuffix, testLabel, testLength, type BenchTest } from './grammar';
import { percentile, ratio, statistics, type Statistics } from './statistics';
import { markdownTable } from './tables';

/** Where and of what: the same in every row, so that a row stands alone. */
export interface BenchOrigin {
  build_commit: string | null;
  build_version: string;
  backend: string;
  gpu_info: string;
  driver: string | null;
  test_time: string;
  model_type: string;
  model_size: number;
  model_n_params: number;
  weights: 'dummy' | 'checkpoint';
  /** How the cache got its rows below n_depth. */
  depth_fill: 'random' | 'computed';
  decode_graphs: boolean;
  prefix_cache: false;
  seed: number;
}

/** A test in an arm: llama-bench's names, and ours after them. Times in ns, rates in tokens/s. */
export interface BenchRow extends BenchOrigin {
  test: string;
  n_batch: number;
  n_ubatch: number;
  n_prompt: number;
  n_gen: number;
  n_depth: number;
  avg_ns: number;
  stddev_ns: number;
  avg_ts: number;
  stddev_ts: number;
  samples_ns: number[];
  samples_ts: number[];
  /** Sequences. */
  batch_size: number;
  attention: string;
  layer_type: string;
  ttft_ms: number | null;
  /** Generated tokens a second of one sequence, and of all: there is one GPU. */
  user_ts: number | null;
  gpu_ts: number | null;
  step_p50_ms: number;
  step_p90_ms: number;
  step_p99_ms: number;
  kv_resident_bytes: number;
  kv_freed_bytes: number;
  peak_memory_bytes: number | null;
  predicted_peak_bytes: number;
  attention_share: number | null;
  roofline_share: number | null;
  /** Against the first arm. */
  speedup: number | null;
  speedup_stddev: number | null;
}

export function benchRows({ arms }: Comparison, origin: BenchOrigin): BenchRow[] {
  const [first] = arms;
  return (first?.results ?? []).flatMap((base, i) =>
    arms.flatMap((arm) => {
      const result = arm.results[i];
      if (result === undefined) return [];
      return [describeTest(origin, arm, result, arm === first ? undefined : base)];
    }),
  );
}

const totals = ({ samples }: TestResult): Statistics =>
  statistics(samples.map(({ total }) => total));

function describeTest(
  origin: BenchOrigin,
  { arm, layerType, memory }: ArmResult,
  result: TestResult,
  base: TestResult | undefined,
): BenchRow {
  const { test, samples, leastSeconds, attentionShare = null } = result;
  const { prompt, generate, depth, batch, chunk } = test;
  const times = samples.map(({ total }) => total * 1e6);
  const rates = times.map((ns) => (batch * (prompt + generate)) / (ns * 1e-9));
  const [time, rate] = [statistics(times), statistics(rates)];
  const steps = samples.flatMap(({ promptSteps, generateSteps }) =>
    generate > 0 ? generateSteps : promptSteps,
  );
  const first = samples.flatMap(({ firstToken = [] }) => firstToken);
  const kv = samples[0]?.kv ?? { resident: 0, full: 0 };
  const rooflineShare = leastSeconds === undefined ? null : leastSeconds / (time.mean * 1e-9);
  const user = generate > 0 ? 1000 / statistics(steps).mean : null;
  const speedup = base && ratio(totals(base), totals(result));
  return {
    ...origin,
    ...{ test: testLabel(test), n_batch: chunk, n_ubatch: chunk },
    ...{ n_prompt: prompt, n_gen: generate, n_depth: depth },
    ...{ avg_ns: time.mean, stddev_ns: time.sd, avg_ts: rate.mean, stddev_ts: rate.sd },
    ...{ samples_ns: times, samples_ts: rates },
    ...{ batch_size: batch, attention: arm, layer_type: layerType },
    ttft_ms: first.length > 0 ? statistics(first).mean : null,
    ...{ user_ts: user, gpu_ts: user === null ? null : user * batch },
    step_p50_ms: percentile(steps, 0.5),
    step_p90_ms: percentile(steps, 0.9),
    step_p99_ms: percentile(steps, 0.99),
    ...{ kv_resident_bytes: kv.resident, kv_freed_bytes: kv.full - kv.resident },
    ...{ peak_memory_bytes: memory.peak ?? null, predicted_peak_bytes: memory.predictedPeak },
    ...{ attention_share: attentionShare, roofline_share: rooflineShare },
    ...{ speedup: speedup?.mean ?? null, speedup_stddev: speedup?.sd ?? null },
  };
}

const spread = (mean: number, sd: number): string => `${formatRate(mean)} ± ${formatRate(sd)}`;
const or = <T>(value: T | null, show: (value: T) => string): string =>
  value === null ? '-' : show(value);

/** Milliseconds with three digits: '0.412', '12.3', '1652'. */
const ms = (value: number): string => (value >= 1000 ? value.toFixed(0) : value.toPrecision(3));

const rightOf = (titles: readonly string[], left: number): string[] =>
  titles.map((_, i) => (i < left ? '---' : '---:'));

/** Two tables: rates as llama-bench has them, and what is behind them. */
export function describeRows(rows: readonly BenchRow[]): string {
  const suffix = stepSuffix(rows);
  const nameOf = (row: BenchRow) => row.test + suffix(row);
  const titles = ['test', 'attention', 'batch', 't/s', 'speed-up', 'TTFT ms'];
  titles.push('t/s a user', 't/s a GPU', 'p50 ms', 'p90 ms', 'p99 ms');
  const rates = rows.map((row) => [
    ...[nameOf(row), row.attention, String(row.batch_size), spread(row.avg_ts, row.stddev_ts)],
    or(row.speedup, (mean) => `${mean.toFixed(2)} ± ${(row.speedup_stddev ?? 0).toFixed(2)} ×`),
    ...[or(row.ttft_ms, ms), or(row.user_ts, formatRate), or(row.gpu_ts, formatRate)],
    ...[row.step_p50_ms, row.step_p90_ms, row.step_p99_ms].map(ms),
  ]);
  const behind = ['test', 'attention', 'batch', 'attention share', 'of the roofline'];
  behind.push('KV resident', 'KV freed', 'peak memory', 'predicted');
  const costs = rows.map((row) => [
    ...[nameOf(row), row.attention, String(row.batch_size), or(row.attention_share, formatPercent)],
    or(row.roofline_share, formatPercent),
    ...[formatBytes(row.kv_resident_bytes), formatBytes(row.kv_freed_bytes)],
    ...[or(row.peak_memory_bytes, formatBytes), formatBytes(row.predicted_peak_bytes)],
  ]);
  return [
    markdownTable([titles, rightOf(titles, 2), ...rates]),
    markdownTable([behind, rightOf(behind, 2), ...costs]),
  ].join('\n\n');
}

/** What was measured, in a line or two above the tables. */
export function describeOrigin(rows: readonly BenchRow[], verdict: string): string {
  const [row] = rows;
  if (row === undefined) return verdict;
  const driver = row.driver === null ? '' : `, driver ${row.driver}`;
  const where = `${row.gpu_info} (${row.backend}${driver}), loza ${row.build_version} ${row.build_commit ?? ''}`;
  const what = `${row.model_type}, ${formatBytes(row.model_size)} of weights (${row.weights})`;
  const arms = [...new Set(rows.map(({ attention, layer_type }) => `${attention} ${layer_type}`))];
  const depth = rows.some(({ n_depth }) => n_depth > 0)
    ? ` Cache rows at the depth are ${row.depth_fill === 'random' ? 'random numbers, not computed' : 'computed, untimed'}.`
    : '';
  const steps = [...new Set(rows.map(({ n_ubatch }) => n_ubatch))].join(', ');
  const how = `Steps of up to ${steps} tokens; decode steps ${row.decode_graphs ? 'recorded' : 'eager'}; no prefix cache; ends of text ignored.${depth}`;
  return `${where.trim()}\n${what}; attentions (1 streams): ${arms.join(', ')}.\n${how}\n${verdict}`;
}

export const describeVerdict = ({
  gate: { passed, problems, similarity },
}: Pick<Comparison, 'gate'>): string => {
  if (!passed) return `Not timed: ${problems.join('; ')}`;
  const arms = similarity === undefined ? '' : `; arms agree, cosine ${similarity.toFixed(6)}`;
  return `Checked first: finite logits, recorded and eager decode steps give the same tokens${arms}.`;
};

/** Comma-separated, one row a line; lists and objects are left to JSON. */
export function formatCsv(rows: readonly BenchRow[]): string {
  const plain = rows.map((row) =>
    (Object.entries(row) as [string, BenchRow[keyof BenchRow]][]).filter(
      ([, value]) => value === null || typeof value !== 'object',
    ),
  );
  const quote = (value: BenchRow[keyof BenchRow]): string =>
    `"${(value ?? '').toString().replaceAll('"', '""')}"`;
  const titles = (plain[0] ?? []).map(([name]) => name).join(',');
  return [titles, ...plain.map((row) => row.map(([, value]) => quote(value)).join(','))].join('\n');
}

export interface PlannedRow {
  attention: string;
  layer_type: string;
  weights_bytes: number;
  kv_pool_bytes: number;
  predicted_peak_bytes: number;
  /** KV bytes by test: held at its end, and freed of what full attention would hold. */
  tests: { test: string; batch_size: number; kv_resident_bytes: number; kv_freed_bytes: number }[];
}

/** What --dry-run prints: nothing is loaded. */
export function planRows(arms: readonly Arm[], tests: readonly BenchTest[]): PlannedRow[] {
  return arms.map((arm) => {
    const { weights, kv, predictedPeak } = planMemory(arm, tests);
    const layerType = arm.plan.pattern?.layerType ?? '0'.repeat(arm.plan.model.attentions);
    return {
      ...{ attention: arm.name, layer_type: layerType, weights_bytes: weights },
      ...{ kv_pool_bytes: kv, predicted_peak_bytes: predictedPeak },
      tests: tests.map((test) => {
        const { resident, full } = arm.dry.holdings(test.batch, testLength(test));
        return {
          ...{ test: testLabel(test), batch_size: test.batch },
          ...{ kv_resident_bytes: resident, kv_freed_bytes: full - resident },
        };
      }),
    };
  });
}

export function describePlanned(rows: readonly PlannedRow[], memoryBytes: number): string {
  const titles = ['attention', 'weights', 'KV pools', 'predicted peak', 'of the device'];
  const cells = rows.map((row) => [
    row.attention,
    ...[row.weights_bytes, row.kv_pool_bytes, row.predicted_peak_bytes].map(formatBytes),
    memoryBytes > 0 ? formatPercent(row.predicted_peak_bytes / memoryBytes) : '-',
  ]);
  const kv = ['test', 'attention', 'batch', 'KV resident', 'KV freed'];
  const lines = rows.flatMap((row) =>
    row.tests.map((test) => [
      ...[test.test, row.attention, String(test.batch_size)],
      ...[formatBytes(test.kv_resident_bytes), formatBytes(test.kv_freed_bytes)],
    ]),
  );
  return [
    'A plan: nothing was loaded and nothing timed. Scratch memory of libraries is not counted.',
    markdownTable([titles, rightOf(titles, 1), ...cells]),
    markdownTable([kv, rightOf(kv, 2), ...lines]),
  ].join('\n\n');
}
