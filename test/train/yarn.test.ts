import { readFileSync } from 'node:fs';
import path from 'node:path';
import { calibrate } from '../../lib/calibrate/calibrate';
import { LanguageModel } from '../../lib/language-model';
import { train } from '../../lib/train/train';
import { byteTokenizer } from '../support/byte-tokenizer';
import { readTwin, writeTwin } from '../support/checkpoint-twin';
import { forEachDeviceKind } from '../support/devices';
import { expectLozaError } from '../support/errors';
import { goldenDir } from '../support/goldens';
import { tempFolder } from '../support/temp-folder';
import { meanLoss, mixGradient, openFrozen, randomBatch, recallLines } from '../support/training';

const yarnFactor = 4;
const newFolder = () => path.join(tempFolder(), 'out');

/** A checkpoint of 128 positions; `config` has other sections about its rotations. */
function short(name = 'longcat-full', config: object = {}): string {
  const twin = readTwin(path.join(goldenDir, name));
  const positions = { max_position_embeddings: 128 };
  return writeTwin(
    { ...twin, config: { ...twin.config, ...positions, ...config } },
    byteTokenizer(),
  );
}

const v3 = { original_max_position_embeddings: 64, rope_theta: 10_000, rope_type: 'yarn' };
const stretched = { rope_parameters: { ...v3, factor: 2, mscale: 1, mscale_all_dim: 1 } };

forEachDeviceKind('beyond the positions of the checkpoint', (device) => {
  test.each([
    ['longcat-full', {}],
    ['glm4-moe-lite', {}],
    ['deepseek-v3-yarn', stretched],
  ])('%s is trained as it is run', async (name, config) => {
    const factor = name === 'deepseek-v3-yarn' ? 8 : yarnFactor;
    const dir = short(name, config);
    const session = await openFrozen(dir, device, factor);
    const { attentions, mla } = session.plan.model;
    const batch = randomBatch([400], mla.vocabSize);
    const range = { sinkBlocks: 1, localBlocks: 1 };
    const options = { range, objective: 'next-token', fullTerm: 'exact' } as const;
    const losses: number[] = [];
    for (const alpha of [1, 0]) {
      const alphas = new Array<number>(attentions).fill(alpha);
      losses.push((await mixGradient(session, options, batch, alphas)).loss);
    }
    session.close();
    for (const [i, type] of ['0', '1'].entries()) {
      const attention = { layerType: type.repeat(attentions), ...range };
      const rope = { yarnFactor: factor };
      const load = { device, dtype: 'float32', attention, rope } as const;
      await using model = await LanguageModel.load(dir, load);
      const { logits } = await model.score(batch.tokens, { positions: batch.labelled });
      const run = meanLoss(logits, batch.targets, mla.vocabSize);
      expect(Math.abs(losses[i]! / run - 1)).toBeLessThan(device === 'cpu' ? 1e-6 : 1e-5);
    }
  });
});

describe('what is written is stretched', () => {
  test.each<[string, object]>([
    ['a config without a section', { rope_parameters: undefined, rope_theta: 1e7 }],
    ['one that says null', { rope_parameters: undefined, rope_theta: 1e7, rope_scaling: null }],
    ['one that has the default', {}],
    ['one that has YaRN', stretched],
    [
      'both spellings',
      { ...stretched, rope_scaling: { ...stretched.rope_parameters, type: 'yarn' } },
    ],
  ])('%s', async (_, config) => {
    const dir = short('longcat-full', config);
    const out = newFolder();
    await calibrate(dir, { out, method: 'interleaved', yarnFactor });
    const wanted = { device: 'cpu', rope: { yarnFactor } } as const;
    await using before = await LanguageModel.load(dir, wanted);
    await using after = await LanguageModel.load(out, { device: 'cpu' });
    expect(after.info.rope).toEqual(before.info.rope);
    expect(after.info.maxPosition).toBe(before.info.maxPosition);
  });

  test('by training and calibration, with longer sequences than the checkpoint has positions', async () => {
    const dir = short();
    const data = [path.join(tempFolder({ 'a.jsonl': recallLines(8, 380) }), 'a.jsonl')];
    const common = { data, device: 'cpu', sequenceLength: 400, batch: 2, steps: 1 } as const;
    const outs = [newFolder(), newFolder()];
    await train(dir, { ...common, out: outs[0]!, yarnFactor });
    await calibrate(dir, { ...common, out: outs[1]!, rounds: 1, yarnFactor, ablationSequences: 1 });
    for (const out of outs) {
      await using model = await LanguageModel.load(out, { device: 'cpu' });
      expect(model.info).toMatchObject({ maxPosition: 512, rope: { factor: yarnFactor } });
    }
    const refused = () => train(dir, { ...common, out: newFolder() });
    await expectLozaError(refused, 'ERR_LOZA_INVALID_ARG', 'sequenceLength must be');
  });

  test('and is what it was without a factor', async () => {
    const dir = short();
    const data = [path.join(tempFolder({ 'a.jsonl': recallLines(4, 60) }), 'a.jsonl')];
    const out = newFolder();
    await train(dir, { data, out, device: 'cpu', sequenceLength: 100, batch: 1, steps: 1 });
    const config = (folder: string) => readFileSync(path.join(folder, 'config.json'), 'utf8');
    expect(config(out)).toBe(config(dir));
  });
});
