import path from 'node:path';
import { MixedModel, type MixOptions } from '../../lib/calibrate/mixed-model';
import { presets } from '../../lib/model/presets';
import { planLoad } from '../../lib/load-model';
import { layOut } from '../../lib/train/batch';
import { planMemory, reserve, type MemoryRequest } from '../../lib/train/memory-plan';
import { expectLozaError } from '../support/errors';
import { goldenDir } from '../support/goldens';
import { mixGradient, openFrozen, randomSequences } from '../support/training';

const options: MixOptions = {
  range: { sinkBlocks: 1, localBlocks: 1 },
  objective: 'distill',
  fullTerm: 'exact',
};

/** The round of a calibration with these options. */
const round =
  (attentions: number, mix = options): MemoryRequest['round'] =>
  (model, grads, angles, batch) => {
    const mixed = new MixedModel(model, angles, mix);
    mixed.gradient(grads, batch, 1, new Float32Array(attentions));
  };

describe.each(['longcat-full', 'deepseek-v2'])('the memory plan of %s', (name) => {
  test('is what a round takes, and no more is allocated after it', async () => {
    const session = await openFrozen(path.join(goldenDir, name));
    const { plan, device, grads } = session;
    const { attentions, mla } = plan.model;
    const sequences = randomSequences([500, 400, 500], mla.vocabSize);
    const before = device.memory().workspace;
    const memory = planMemory({
      ...{ plan, device, weights: 0, optimizer: 0, batch: 2, sequences },
      round: round(attentions),
    });
    expect(memory.sequencesAtOnce).toBe(2);
    reserve(grads, memory);
    const reserved = device.memory().workspace;
    expect(reserved - before).toBeLessThan(memory.activations + 2 ** 20);
    const alphas = new Array<number>(attentions).fill(0.5);
    const batch = layOut([sequences[0]!, sequences[2]!]);
    await mixGradient(session, options, batch, alphas);
    expect(device.memory().workspace).toBe(reserved);
    session.close();
  });
});

describe('DeepSeek-V2-Lite', () => {
  const request = async (available: number, length: number): Promise<MemoryRequest> => {
    const rope = { yarnFactor: undefined, exactAngles: false };
    const dummy = { attention: 'full', rope, signal: undefined, loadFormat: 'dummy' } as const;
    const plan = await planLoad('deepseek-v2-lite', dummy);
    const weights = [...plan.checkpoint.tensors.values()].reduce(
      (sum, { begin, end }) => sum + end - begin,
      0,
    );
    const device = {
      kind: 'cuda',
      activation: 'bf16',
      freeMemory: () => available,
    } as const;
    const sequences = randomSequences([length], plan.model.mla.vocabSize);
    const mix = { ...options, range: { sinkBlocks: 1, localBlocks: 7 } };
    return {
      ...{ plan, device, weights, optimizer: 0, batch: 8, sequences },
      round: round(plan.model.attentions, mix),
    };
  };

  test('is calibrated with 4,096 tokens at a time on a GPU of 80 GB, and not on one of 24', async () => {
    expect(Object.keys(presets)).toContain('deepseek-v2-lite');
    const { total, weights, sequencesAtOnce } = planMemory(await request(79 * 2 ** 30, 4096));
    expect(weights / 2 ** 30).toBeCloseTo(29.3, 0);
    expect(total).toBeLessThan(0.9 * 79 * 2 ** 30);
    expect(sequencesAtOnce).toBeGreaterThanOrEqual(1);
    const small = await request(24 * 2 ** 30, 4096);
    await expectLozaError(() => planMemory(small), 'ERR_LOZA_OUT_OF_MEMORY', 'are free');
  });
});
