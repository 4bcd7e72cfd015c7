import { everyOther } from '../../lib/bench/arms';
import { DryModel } from '../../lib/bench/dry-model';
import { h20 } from '../../lib/bench/limits';
import { seat } from '../../lib/bench/sequences';
import { loadModel, planLoad } from '../../lib/load-model';
import { resolveLoadOptions, type LoadOptions } from '../../lib/load-options';
import { tiny } from '../cli/cli';

const K = 1024;

async function dry(dir: string, given: LoadOptions, kind: 'cpu' | 'cuda'): Promise<DryModel> {
  const options = resolveLoadOptions({ loadFormat: 'dummy', ...given });
  return new DryModel(await planLoad(dir, options), options, kind);
}

const longcat = (attention: LoadOptions['attention'], maxTokens: number) =>
  dry(
    'longcat-flash',
    {
      ...{ attention, maxTokens, maxSequences: 1, chunkTokens: 8 * K },
      configOverrides: { layers: 4, experts: 64, zeroExperts: 32 },
    },
    'cuda',
  );

describe('a model on no device', () => {
  test('predicts what a real one takes', async () => {
    const given: LoadOptions = { maxTokens: 4 * K, chunkTokens: 512, device: 'cpu' };
    const plan = await dry(tiny, given, 'cpu');
    const options = resolveLoadOptions({ loadFormat: 'dummy', ...given });
    const loaded = await loadModel(tiny, options);
    try {
      const depth = 1024;
      plan.step(1, 512, depth);
      const tokens = () => new Array<number>(512).fill(1);
      const sequences = seat(loaded.groups, { batch: 1, depth, tokens });
      await loaded.parts.runner.start(sequences.map((sequence) => ({ sequence, count: 512 })))
        .outputs;
      const { weights, kv, peak } = loaded.device.memory();
      expect(plan.bytes).toMatchObject({ weights, kv });
      const predicted = weights + kv + plan.bytes.workspace + plan.arenaBytes;
      expect(Math.abs(predicted / peak - 1)).toBeLessThan(0.05);
      for (const sequence of sequences) sequence.release();
    } finally {
      loaded.device.close();
    }
  });

  test('knows the KV bytes of a sequence', async () => {
    const model = await longcat({ layerType: everyOther(8) }, 128 * K);
    const { resident, full } = model.holdings(2, 128 * K);
    const row = 576 * 2;
    expect(full).toBe(2 * 8 * 128 * K * row);
    // At a block's border the window holds the sinks and the six blocks that a next query can see.
    expect(resident).toBe(2 * 4 * (128 * K + 7 * 128) * row);
    for (const { pool } of model.groups) expect(pool.inUse).toBe(0);
  });

  test('a decode step is bound by its weights and its cache', async () => {
    const [short, long] = [1024, 128 * K];
    const model = await longcat('full', 128 * K + 128);
    const h100 = { bytes: 3.07e12, flops: 756e12 };
    const step = (context: number) => model.leastSeconds(1, 1, context - 1, h100);
    const keys = 8 * (long - short) * 1152;
    expect(step(long) - step(short)).toBeCloseTo(keys / h100.bytes, 6);
  });

  test('a prompt is the sum of its chunks, looked at or not', async () => {
    const model = await longcat({ layerType: everyOther(8) }, 128 * K);
    const chunk = 8 * K;
    const [predicted = NaN] = model.leastPrefillSeconds([16 * chunk - 100], chunk, h20);
    let sum = 0;
    for (let at = 0; at < 16 * chunk - 100; at += chunk) {
      sum += model.leastSeconds(1, Math.min(chunk, 16 * chunk - 100 - at), at, h20);
    }
    expect(predicted / sum).toBeCloseTo(1, 3);
    const test = { prompt: 2 * chunk, generate: 4, depth: chunk, batch: 2, chunk };
    const parts = [chunk, 2 * chunk].map((at) => model.leastSeconds(1, chunk, at, h20));
    const steps = 4 * model.leastSeconds(2, 1, 3 * chunk + 2, h20);
    const seconds = 2 * parts.reduce((a, b) => a + b) + steps;
    expect(model.leastTestSeconds(test, h20)).toBeCloseTo(seconds, 9);
  });
});
