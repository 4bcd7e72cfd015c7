import { planArms, type Arm } from '../../lib/bench/ab';
import {
  figureTests,
  measureFigure,
  predictFigure,
  type FigurePlan,
  type MeasuredFigure,
} from '../../lib/bench/figure3';
import { describeFigure, drawFigure, type FigureReport } from '../../lib/bench/figure3-report';
import { h20 } from '../../lib/bench/limits';
import { linearTicks, logTicks } from '../../lib/bench/line-chart';
import { panelContexts, paperPoint } from '../../lib/bench/paper';
import { leastEffort } from '../../lib/bench/stopwatch';
import type { LoadOptions } from '../../lib/load-options';
import { tiny } from '../cli/cli';

const K = 1024;

async function plan(
  dir: string,
  sizes: Partial<FigurePlan>,
  base: LoadOptions,
  kind: 'cpu' | 'cuda',
): Promise<{ figure: FigurePlan; arms: [Arm, Arm] }> {
  const figure: FigurePlan = {
    ...{ from: 4 * K, to: 256 * K, chunk: 8 * K, batchAt: () => 16, kernelBatch: 1 },
    ...{ steps: 4, seed: 1, ...sizes },
  };
  const options: LoadOptions = { loadFormat: 'dummy', ...base };
  const arms = await planArms(dir, ['full', 'loza'], figureTests(figure), options, kind);
  return { figure, arms: arms as [Arm, Arm] };
}

const report = (panels: MeasuredFigure['panels']): FigureReport => ({
  ...{ device: 'a <GPU>', driver: '580.1', date: '2026-11-22', version: '1', commit: 'abc' },
  ...{ dir: 'preset', layers: 2, experts: 4, zeroExperts: 2, heads: 8, layerType: '1010' },
  ...{ chunk: 8 * K, yarnFactor: 2, panels, memory: [], verdict: 'Checked.' },
});

test("the paper's points by context", () => {
  expect(panelContexts('kernel', 4 * K, 256 * K)).toEqual(
    [8, 16, 32, 64, 128, 256].map((n) => n * K),
  );
  expect(panelContexts('decode', 4 * K, 1024 * K)).toHaveLength(9);
  expect(paperPoint('kernel', 8 * K)).toBe(1.9);
  expect(paperPoint('kernel', 256 * K)).toBe(16.9);
  expect(paperPoint('prefill', 4 * K)).toBe(0.99);
  expect(paperPoint('decode', 128 * K)).toBe(1.345);
  expect(paperPoint('decode', 512 * K)).toBeUndefined();
  expect(paperPoint('kernel', 4 * K)).toBeUndefined();
});

describe('measured on a CPU', () => {
  let figure: MeasuredFigure;
  beforeAll(async () => {
    const sizes = { from: 128, to: 2 * K, chunk: 512, batchAt: (n: number) => (n > K ? 1 : 2) };
    const small = { configOverrides: { layers: 1, experts: 2, zeroExperts: 1 } };
    const { figure: what, arms } = await plan(tiny, sizes, small, 'cpu');
    const device = { kind: 'cpu', limits: undefined, effort: leastEffort } as const;
    figure = await measureFigure(tiny, arms, what, device, {});
  }, 60_000);

  test('has all points, and memory as predicted', () => {
    const { gate, panels, memory } = figure;
    expect(gate.passed).toBe(true);
    expect(panels.kernel.map(({ context }) => context)).toEqual([256, 512, 1024, 2048]);
    expect(panels.prefill.map(({ context }) => context)).toEqual([128, 256, 512, 1024, 2048]);
    expect(panels.decode.map(({ batch }) => batch)).toEqual([2, 2, 2, 2, 1]);
    for (const point of Object.values(panels).flat()) {
      expect(point.full).toBeGreaterThan(0);
      expect(point.speedup).toBeCloseTo(point.full / point.loza, 12);
      expect(point.fullOfLimit).toBeUndefined();
    }
    const [first, ...later] = panels.prefill.filter(({ context }) => context >= 512);
    for (const point of later) expect(point.full).toBeGreaterThan(first?.full ?? NaN);
    expect(memory.map(({ arm }) => arm)).toEqual(['full', 'loza']);
    for (const { peak = 0, predictedPeak } of memory) {
      expect(Math.abs(peak / predictedPeak - 1)).toBeLessThan(0.1);
    }
  });

  test('as tables: what was measured, and how', () => {
    const text = describeFigure({ ...report(figure.panels), memory: figure.memory });
    expect(text).toContain('Measured on a <GPU>, driver 580.1');
    expect(text).toContain('### Decode step of the layers, batch 2 to 1\n');
    expect(text).toContain('Longer contexts decode the batch that fits.');
    expect(text).toContain('random cache rows');
    expect(text).toMatch(/Peak memory: full .* \(predicted .*, off by \d/);
  });
});

describe('predicted for an H20', () => {
  let panels: MeasuredFigure['panels'];
  beforeAll(async () => {
    const configOverrides = { layers: 4, experts: 64, zeroExperts: 32 };
    const base = { configOverrides, rope: { yarnFactor: 2 } };
    const { figure, arms } = await plan('longcat-flash', {}, base, 'cuda');
    panels = predictFigure(arms, figure, h20);
  });

  test('grows with the context, past the points of the paper', () => {
    expect(panels.kernel).toHaveLength(6);
    for (const name of ['prefill', 'decode'] as const) {
      const points = panels[name];
      expect(points).toHaveLength(7);
      points.slice(1).forEach(({ speedup }, i) => {
        expect(speedup).toBeGreaterThan(points[i]?.speedup ?? Infinity);
      });
      for (const { speedup, paper = NaN } of points) expect(speedup).toBeGreaterThan(paper);
      expect(points.at(-1)?.speedup).toBeLessThan(2); // half of the attentions stay full
    }
    // 64 heads make decode attention compute-bound on an H20: keys decide alone.
    expect(panels.kernel.at(-1)?.speedup).toBeCloseTo(256, 6);
  });

  test('says so, in the tables and in the drawing', () => {
    const predicted = { ...report(panels), predictedFor: 'h20' as const, verdict: '' };
    const text = describeFigure(predicted);
    expect(text).toMatch(/^Predicted for an H20 from rooflines \(148 TFLOP\/s .* not measured/);
    expect(text).toMatch(/\| +256K \| +1 \| .* \| +1\.55 × \|/);
    expect(text).not.toContain('of limit');
    expect(drawFigure(predicted)).toContain('Predicted for an H20');
  });

  test('the drawing is well-formed and has every point', () => {
    const svg = drawFigure(report(panels));
    expect(svg).toMatch(/^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" width="\d+" height="\d+"/);
    expect(svg).toContain('fill="#ffffff"');
    expect(svg).toContain('a &lt;GPU&gt;');
    expect(svg).not.toMatch(/NaN|undefined|Infinity/);
    expect(svg.match(/<circle /g)).toHaveLength(6 + 7 + 7 + 1); // and one in the legend
    const open: string[] = [];
    for (const [, end, name = '', own] of svg.matchAll(/<(\/?)(\w+)[^>]*?(\/?)>/g)) {
      if (end) expect(open.pop()).toBe(name);
      else if (!own) open.push(name);
    }
    expect(open).toEqual([]);
  });
});

test('ticks are round and hold all values and 1', () => {
  expect(linearTicks([0.98, 1.45])).toEqual([0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5]);
  expect(linearTicks([1.02, 1.9])).toEqual([1, 1.2, 1.4, 1.6, 1.8, 2]);
  expect(logTicks([1.9, 16.9])).toEqual([1, 2, 4, 8, 16, 32]);
  expect(logTicks([0.7, 3])).toEqual([0.5, 1, 2, 4]);
});
