import { fullSizes, smallSizes, type KernelCase } from '../../lib/bench/kernel-case';
import { kernelCases, runKernels, type KernelReport } from '../../lib/bench/kernels';
import { leastEffort } from '../../lib/bench/stopwatch';
import { describeKernels, describePredictions } from '../../lib/bench/tables';
import { Workbench } from '../../lib/bench/workbench';

const run = (cases: readonly KernelCase[]) =>
  runKernels(cases, { kind: 'cpu', sizes: smallSizes, effort: leastEffort });

describe('every case, small and on the CPU', () => {
  let report: KernelReport;
  beforeAll(async () => {
    report = await run(kernelCases(smallSizes));
  }, 120_000);

  test('runs, with finite results', () => {
    expect(report.rows.filter(({ failure }) => failure !== undefined)).toEqual([]);
    for (const { microseconds, work } of report.rows) {
      expect(microseconds).toBeGreaterThan(0);
      expect(work.bytes).toBeGreaterThan(0);
    }
  });

  test('has a line in the tables, without targets', () => {
    const text = describeKernels(report);
    for (const { name } of report.rows) expect(text).toContain(`| ${name} `);
    expect(text).not.toContain('| no ');
  });
});

test('targets are those of issues 3 and 4', () => {
  const cases = kernelCases(fullSizes);
  const target = (name: string) => cases.find((c) => c.name === name)?.target;
  expect(target('full, 64 heads, batch 1, 8K')).toEqual({ us: 12 });
  expect(target('streaming, 8 heads, 2 queries, batch 32, 128K')).toEqual({ us: 16 });
  expect(target('streaming, 32K')).toEqual({ us: 2500 });
  expect(target('gate and up, 6144 → 4096, FP8 128×128, 16384 tokens')).toEqual({ tflops: 1050 });
  expect(target('6144 → 12288, bf16, 1 rows')).toEqual({ share: 0.85 });
  expect(new Set(cases.map(({ table, name }) => `${table}: ${name}`)).size).toBe(cases.length);
});

test('predictions for an H20 are called predictions', () => {
  const text = describePredictions(kernelCases(fullSizes));
  expect(text).toMatch(/^Predictions for an H20 .* not measured\./);
  // 64 heads, batch 32, 128K: 4.2M keys of 139,264 FLOPs at 148 TFLOP/s.
  expect(text).toMatch(/full, 64 heads, batch 32, 128K +\| +3,947 \| FLOPs/);
});

test('a case whose result is not written, or not finite, fails and says so', async () => {
  const base = { table: 'bad', work: () => ({ bytes: 1, flops: 0 }) };
  const unwritten: KernelCase = {
    ...{ ...base, name: 'unwritten' },
    prepare: (bench) => ({ sets: 1, run: () => [bench.ops.float(8)] }),
  };
  const infinite: KernelCase = {
    ...{ ...base, name: 'infinite' },
    prepare: (bench) => ({
      sets: 1,
      run: () => {
        const out = bench.ops.float(8);
        bench.ops.fill(out, Infinity);
        return [out];
      },
    }),
  };
  const { rows } = await run([unwritten, infinite]);
  expect(rows.map(({ microseconds }) => microseconds)).toEqual([undefined, undefined]);
  for (const { failure } of rows) expect(failure).toMatch(/not finite or was not written/);
});

test('large results are looked at from end to end', async () => {
  const bench = new Workbench('cpu');
  try {
    const values = bench.normal('f32', [4 * 2 ** 20]);
    await bench.check(() => [values]);
    bench.poison(values.slice(0, values.elements - 1, values.elements));
    await expect(bench.check(() => [values])).rejects.toThrow(/not finite/);
  } finally {
    bench.close();
  }
});
