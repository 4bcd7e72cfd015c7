import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { calibrate } from '../../lib/calibrate/calibrate';
import { LanguageModel } from '../../lib/language-model';
import { train } from '../../lib/train/train';
import { byteTokenizer } from '../support/byte-tokenizer';
import {
  changeTensors,
  floatsOf,
  bytesOf,
  quantize,
  readTwin,
  writeTwin,
} from '../support/checkpoint-twin';
import { forEachDeviceKind } from '../support/devices';
import { expectLozaError } from '../support/errors';
import { goldenDir } from '../support/goldens';
import { tempFolder } from '../support/temp-folder';
import { meanLoss, mixGradient, openFrozen, randomBatch, recallLines } from '../support/training';

const matrices = /(q_a|q_b|kv_a_proj_with_mqa|kv_b|o|gate|up|down)_proj(_with_mqa)?\.weight$/;
const range = { sinkBlocks: 1, localBlocks: 1 };

/** The checkpoint in block-scaled f8e4m3, and in the f32 that this stands for. */
function pair(name: string): { f8: string; f32: string } {
  const twin = readTwin(path.join(goldenDir, name));
  const f8 = changeTensors(twin, matrices, (t) => [quantize(t).f8, quantize(t).scale]);
  const f32 = changeTensors(twin, matrices, (t) => quantize(t).f32);
  return { f8: writeTwin(f8, byteTokenizer()), f32: writeTwin(f32, byteTokenizer()) };
}

for (const name of ['longcat-full', 'deepseek-v3-yarn']) {
  const dirs = pair(name);
  forEachDeviceKind(`${name} in f8e4m3`, (device) => {
    test('has the gradient of what it stands for, to the bit', async () => {
      const results = [];
      for (const dir of [dirs.f8, dirs.f32]) {
        const session = await openFrozen(dir, device);
        const { attentions, mla } = session.plan.model;
        const alphas = Array.from({ length: attentions }, (_, i) => 0.3 + 0.1 * i);
        const batch = randomBatch([330], mla.vocabSize);
        const options = { range, objective: 'distill', fullTerm: 'exact' } as const;
        results.push(await mixGradient(session, options, batch, alphas));
        session.close();
      }
      expect(results[0]).toEqual(results[1]);
      expect(results[0]!.gradient.every((slope) => slope !== 0)).toBe(true);
    });
  });

  test(`${name}: the loss is that of inference`, async () => {
    const session = await openFrozen(dirs.f8);
    const { attentions, mla } = session.plan.model;
    const batch = randomBatch([330], mla.vocabSize);
    const options = { range, objective: 'next-token', fullTerm: 'exact' } as const;
    const alphas = new Array<number>(attentions).fill(1);
    const { loss } = await mixGradient(session, options, batch, alphas);
    session.close();
    await using model = await LanguageModel.load(dirs.f8, { device: 'cpu' });
    const { logits } = await model.score(batch.tokens, { positions: batch.labelled });
    expect(Math.abs(loss / meanLoss(logits, batch.targets, mla.vocabSize) - 1)).toBeLessThan(1e-6);
  });
}

describe('a quantised checkpoint', () => {
  const { f8, f32 } = pair('longcat-full');
  const data = [path.join(tempFolder({ 'a.jsonl': recallLines(8, 380) }), 'a.jsonl')];
  const small = () =>
    ({
      ...{ data, device: 'cpu' as const, sequenceLength: 400, batch: 2, steps: 2, rounds: 1 },
      ...{ ...range, ablationSequences: 2, out: path.join(tempFolder(), 'out') },
    }) as const;

  test('is calibrated, and stays as it is', async () => {
    const [options, other] = [small(), small()];
    const report = await calibrate(f8, options);
    expect(report.alphas).toEqual((await calibrate(f32, other)).alphas);
    const weights = (dir: string) => readFileSync(path.join(dir, 'model.safetensors'));
    expect(weights(options.out).equals(weights(f8))).toBe(true);
    await using model = await LanguageModel.load(options.out, { device: 'cpu' });
    expect(model.info.layerType).toBe(report.layerType);
  });

  test('is not trained, and the error says what to do', async () => {
    const { data, device, out } = small();
    const run = () => train(f8, { data, device, out });
    await expectLozaError(run, 'ERR_LOZA_UNSUPPORTED', 'F32 and BF16 can be trained');
    await expectLozaError(run, 'ERR_LOZA_UNSUPPORTED', 'Convert the checkpoint to bfloat16');
    expect(() => readdirSync(out)).toThrow();
  });

  test('with a scale that is no number is refused', async () => {
    const twin = changeTensors(readTwin(f8), /0\.o_proj\.weight_scale_inv$/, (scale) => ({
      ...scale,
      data: bytesOf(floatsOf(scale).fill(NaN)),
    }));
    const run = () => calibrate(writeTwin(twin, byteTokenizer()), small());
    await expectLozaError(run, 'ERR_LOZA_CHECKPOINT', 'holds the scale NaN');
  });
});
