import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { calibrate } from '../../lib/calibrate/calibrate';
import type { CalibrateOptions, CalibrateProgress } from '../../lib/calibrate/options';
import { LanguageModel } from '../../lib/language-model';
import { expectLozaError } from '../support/errors';
import { baseDir, passKeyLines } from '../support/pass-keys';
import { tempFolder } from '../support/temp-folder';
import { recallLines, smallModel } from '../support/training';

const dir = smallModel();
const data = [path.join(tempFolder({ 'a.jsonl': recallLines(24, 380) }), 'a.jsonl')];
const newFolder = () => path.join(tempFolder(), 'out');
const small = (change: Partial<CalibrateOptions> = {}): CalibrateOptions => ({
  ...{ data, device: 'cpu', out: newFolder(), sequenceLength: 400, batch: 2, steps: 3, rounds: 1 },
  ...{ sinkBlocks: 1, localBlocks: 1, ablationSequences: 3 },
  ...change,
});

describe('calibrate', () => {
  test('writes a checkpoint that runs with its pattern, and everything about it', async () => {
    const options = small();
    const report = await calibrate(dir, options);
    const { out } = options;
    expect(readdirSync(out).sort()).toEqual([
      ...['alphas.json', 'alphas.svg', 'config.json', 'model.safetensors'],
      ...['tokenizer.json', 'tokenizer_config.json'],
    ]);
    const inode = (folder: string) => statSync(path.join(folder, 'model.safetensors')).ino;
    expect(inode(out)).toBe(inode(dir));
    expect(JSON.parse(readFileSync(path.join(out, 'alphas.json'), 'utf8'))).toEqual(
      JSON.parse(JSON.stringify(report)),
    );
    expect(report.alphas).toHaveLength(4);
    expect(report.losses).toHaveLength(3);
    await using model = await LanguageModel.load(out, { device: 'cpu' });
    expect(model.info).toMatchObject({
      layerType: report.layerType,
      sinkBlocks: 1,
      localBlocks: 1,
    });
    expect(report.layerType).toMatch(/^[01]{4}$/);
    expect(report.layerType.replaceAll('0', '')).toHaveLength(2);
  });

  test.each<Partial<CalibrateOptions>>([
    { method: 'gradient' },
    { method: 'gradient', fullTerm: 'detached', objective: 'next-token' },
    { method: 'ablation' },
    { method: 'random', data: [] },
  ])('%j gives the same bytes again', async (change) => {
    const [one, other] = [small(change), small(change)];
    await calibrate(dir, one);
    await calibrate(dir, other);
    for (const name of readdirSync(one.out)) {
      const bytes = (out: string) => readFileSync(path.join(out, name));
      expect(bytes(other.out).equals(bytes(one.out))).toBe(true);
    }
  });

  test('ablation ranks by what each attention costs alone', async () => {
    const { ablations, order, layerType } = await calibrate(dir, small({ method: 'ablation' }));
    expect(ablations).toHaveLength(4);
    const sorted = [...order!].sort((a, b) => ablations![a]! - ablations![b]!);
    expect(order).toEqual(sorted);
    expect(order!.slice(0, 2).every((i) => layerType[i] === '1')).toBe(true);
  });

  test('the seed decides the order of the data', async () => {
    const reports = await Promise.all([1, 2].map((seed) => calibrate(dir, small({ seed }))));
    expect(reports[0]!.data!.hash).not.toBe(reports[1]!.data!.hash);
  });

  test('rounds go on with other penalties until the median is inside', async () => {
    const { rounds } = await calibrate(dir, small({ penalty: 1e5, rounds: 3, learningRate: 1 }));
    expect(rounds!.map(({ penalty }) => penalty)).toEqual([1e5, 5e4, 2.5e4]);
    expect(rounds!.every(({ median }) => median === 0)).toBe(true);
  });

  test('a run that is aborted goes on to the same bytes', async () => {
    const straight = small({ method: 'ablation' });
    await calibrate(dir, straight);
    const stopped = small({ method: 'ablation' });
    for (const phase of ['planned', 'ablation'] as const) {
      const controller = new AbortController();
      const onProgress = (progress: CalibrateProgress) => {
        if (progress.phase === phase) controller.abort();
      };
      const run = () => calibrate(dir, { ...stopped, onProgress, signal: controller.signal });
      await expectLozaError(run, 'ERR_LOZA_ABORTED', 'aborted');
    }
    await calibrate(dir, stopped);
    const result = ({ out }: CalibrateOptions) =>
      readFileSync(path.join(out, 'alphas.json'), 'utf8');
    expect(result(stopped)).toBe(result(straight));
  });

  test.each<[string, Partial<CalibrateOptions>, string]>([
    ['no data', { data: [] }, 'data must be at least one file'],
    ['data that nobody reads', { method: 'random' }, 'data must be none'],
    ['a sparsity above 1', { sparsity: 2 }, 'sparsity must be a number of 0..1'],
    ['an unknown method', { method: 'magic' as 'random' }, 'method must be one of'],
    ['sequences that the model cannot read', { sequenceLength: 10_000 }, 'sequenceLength must be'],
    ['a folder that is not empty', { out: tempFolder({ 'a.txt': 'mine' }) }, 'is not empty'],
    ['its own folder', { out: dir }, 'must be another folder'],
  ])('refuses %s', async (_, change, message) => {
    await expectLozaError(() => calibrate(dir, small(change)), 'ERR_LOZA_INVALID_ARG', message);
  });

  test('refuses options that are none', async () => {
    const run = () => calibrate(dir, undefined as unknown as CalibrateOptions);
    await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', 'must be an object, got undefined');
  });

  test('refuses to go on with other options', async () => {
    const out = newFolder();
    const controller = new AbortController();
    const onProgress = ({ phase }: CalibrateProgress) => {
      if (phase === 'ablation') controller.abort();
    };
    const stopped = { out, tieWidth: 1, onProgress, signal: controller.signal };
    const first = () => calibrate(dir, small(stopped));
    await expectLozaError(first, 'ERR_LOZA_ABORTED', 'aborted');
    expect(readdirSync(out)).toEqual(['calibration-state.json']);
    const second = () => calibrate(dir, small({ out, tieWidth: 1, seed: 9 }));
    await expectLozaError(second, 'ERR_LOZA_INVALID_ARG', 'other options');
  });
});

const describeBase = existsSync(baseDir) ? describe : describe.skip;
describeBase(`loza-tiny-base (skipped where ${baseDir} is missing)`, () => {
  test('the attention that finds keys stays above all others', async () => {
    const lines = await passKeyLines(8, 1200, 1);
    const keys = path.join(tempFolder({ 'keys.jsonl': lines }), 'keys.jsonl');
    const { alphas } = await calibrate(baseDir, {
      ...{ data: [keys], out: newFolder(), device: 'cpu', sequenceLength: 640, batch: 1 },
      ...{ steps: 5, rounds: 1, localBlocks: 1, learningRate: 0.02, tieWidth: 0 },
    });
    const others = alphas!.filter((_, i) => i !== 1);
    expect(alphas![1]! - Math.max(...others)).toBeGreaterThan(0.03);
  });
});
