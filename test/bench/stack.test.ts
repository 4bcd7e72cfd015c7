import { fillCaches, measureStep, type StackRow } from '../../lib/bench/stack';
import { summarize } from '../../lib/bench/timeline';
import { loadModel, type LoadedModel } from '../../lib/load-model';
import { resolveLoadOptions } from '../../lib/load-options';
import { tiny } from '../cli/cli';

const rates = { copyBytes: 1e10, readBytes: 1e10, writeBytes: 1e10, emptyLaunchNs: 100 };
const limits = { bytes: 1e10, flops: 1e11, ...rates };

describe('a stack of layers with dummy weights', () => {
  let loaded: LoadedModel;
  beforeAll(async () => {
    const options = { device: 'cpu', loadFormat: 'dummy', maxTokens: 4096 } as const;
    const configOverrides = { layers: 2, experts: 4, zeroExperts: 2 };
    loaded = await loadModel(tiny, resolveLoadOptions({ ...options, configOverrides }));
    fillCaches(loaded);
  });
  afterAll(() => loaded.device.close());

  const measure = (count: number, position: number, batch: number): Promise<StackRow> => {
    const step = { name: 'step', batch, count, position };
    return measureStep(loaded, step, { limits, realExperts: 2 / 3, runs: 3 });
  };

  test('prefill and decode, by operation', async () => {
    const prefill = await measure(256, 0, 1);
    const decode = await measure(1, 300, 3);
    for (const row of [prefill, decode]) {
      expect(row.step).toBeGreaterThan(0);
      expect(row.graph).toBeGreaterThan(0);
      expect(row.table.reduce((sum, { calls }) => sum + calls, 0)).toBe(row.operations);
      expect(row.table.reduce((sum, { share }) => sum + share, 0)).toBeCloseTo(1, 6);
    }
    const operations = (row: StackRow) => new Set(row.table.map(({ operation }) => operation));
    expect(operations(prefill)).toContain('AttentionPrefill');
    expect(operations(decode)).toContain('AttentionDecode');
    expect(decode.table.find(({ operation }) => operation === 'Sample')?.calls).toBe(1);
  });

  test('gives back the blocks it took', async () => {
    await measure(1, 300, 3);
    for (const { pool } of loaded.groups) expect(pool.inUse).toBe(0);
  });
});

test('calls of one shape come together, less what the clock adds', () => {
  const work = { bytes: 1e4, flops: 0 };
  const call = (shape: string, microseconds: number) => {
    return { operation: 'Linear', shape, work, microseconds } as const;
  };
  const rows = summarize([call('a', 3), call('b', 11), call('a', 5)], 1, limits);
  expect(rows).toEqual([
    expect.objectContaining({
      shape: 'b',
      calls: 1,
      microseconds: 10,
      limit: 1,
      shareOfLimit: 0.1,
    }),
    expect.objectContaining({ shape: 'a', calls: 2, microseconds: 6, limit: 2 }),
  ]);
  expect(rows[0]?.share).toBeCloseTo(10 / 16, 9);
});
