import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { LanguageModel } from '../../lib/language-model';
import type { TrainOptions, TrainProgress } from '../../lib/train/options';
import { train } from '../../lib/train/train';
import { byteTokenizer } from '../support/byte-tokenizer';
import { bytesOf, changeTensors, floatsOf, readTwin, writeTwin } from '../support/checkpoint-twin';
import { expectLozaError } from '../support/errors';
import { tempFolder } from '../support/temp-folder';
import { recallLines, smallModel } from '../support/training';

const data = [path.join(tempFolder({ 'a.jsonl': recallLines(16, 40) }), 'a.jsonl')];
const newFolder = () => path.join(tempFolder(), 'out');
const small = (change: Partial<TrainOptions> = {}): TrainOptions => ({
  ...{ data, device: 'cpu', out: newFolder(), sequenceLength: 64, batch: 4, steps: 6 },
  ...{ learningRate: 3e-3, saveEvery: 2 },
  ...change,
});
const weightsOf = ({ out }: TrainOptions) => readFileSync(path.join(out, 'model.safetensors'));

describe.each(['longcat-zigzag-yarn', 'deepseek-v3-zigzag'])('train %s', (name) => {
  const dir = smallModel(name);

  test('lowers the loss, and writes a checkpoint that runs', async () => {
    const options = small({ steps: 30, saveEvery: 100 });
    const { losses, layerType } = await train(dir, options);
    expect(losses).toHaveLength(30);
    expect(losses.at(-1)).toBeLessThan(losses[0]! - 1);
    expect(readdirSync(options.out).sort()).toEqual([
      ...['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'],
      'training.json',
    ]);
    await using model = await LanguageModel.load(options.out, { device: 'cpu' });
    expect(model.info.layerType).toBe(layerType);
    const { text } = await model.generate('abc', { maxNewTokens: 4, ignoreEos: true }).result();
    expect(typeof text).toBe('string');
  });

  test('a balance rate evens the loads of experts', async () => {
    // All tokens want the first expert.
    const twin = changeTensors(readTwin(dir), /e_score_correction_bias$/, (tensor) => {
      const values = floatsOf(tensor);
      values[0] = 0.5;
      return { ...tensor, data: bytesOf(values) };
    });
    const busiest: number[] = [];
    const onProgress = (progress: TrainProgress) => {
      if (progress.phase === 'training') busiest.push(progress.busiest!);
    };
    const options = small({ steps: 40, saveEvery: 100, balanceRate: 0.02, onProgress });
    await train(writeTwin(twin, byteTokenizer()), options);
    expect(busiest[0]).toBeGreaterThan(2);
    expect(busiest.at(-1)).toBeLessThan(1.5);
  });

  test('a run that is aborted again and again ends in the same bytes', async () => {
    const straight = small({ balanceRate: 0.01 });
    await train(dir, straight);
    const stopped = small({ balanceRate: 0.01 });
    for (const at of [1, 3, 4, 6]) {
      const controller = new AbortController();
      const onProgress = (progress: TrainProgress) => {
        if (progress.phase === 'training' && progress.step === at) controller.abort();
      };
      const run = () => train(dir, { ...stopped, onProgress, signal: controller.signal });
      if (at < 6) await expectLozaError(run, 'ERR_LOZA_ABORTED', 'aborted');
    }
    const seen: number[] = [];
    await train(dir, {
      ...stopped,
      onProgress: (progress) => progress.phase === 'training' && seen.push(progress.step),
    });
    expect(seen).toEqual([5, 6]);
    expect(weightsOf(stopped).equals(weightsOf(straight))).toBe(true);
  });
});

test.each<[string, Partial<TrainOptions>, string]>([
  ['no data', { data: [] }, 'data must be at least one file'],
  ['no steps', { steps: 0 }, 'steps must be an integer of 1..'],
  ['a folder that is not empty', { out: tempFolder({ 'a.txt': 'mine' }) }, 'is not empty'],
])('refuses %s', async (_, change, message) => {
  const run = () => train(smallModel(), small(change));
  await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', message);
});

test('refuses options that are none', async () => {
  const run = () => train(smallModel(), undefined as unknown as TrainOptions);
  await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', 'must be an object, got undefined');
});

test('a balance rate needs biases', async () => {
  const run = () => train(smallModel('deepseek-v2'), small({ balanceRate: 0.001 }));
  await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', 'no correction bias');
});

test('a loss that is no number any more stops the run', async () => {
  const twin = changeTensors(readTwin(smallModel()), /^lm_head/, (tensor) => ({
    ...tensor,
    data: bytesOf(floatsOf(tensor).fill(3e38)),
  }));
  const run = () => train(writeTwin(twin, byteTokenizer()), small());
  await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', 'diverged');
});
