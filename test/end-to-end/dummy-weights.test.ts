import { LanguageModel } from '../../lib';
import { planLoad } from '../../lib/load-model';
import { resolveLoadOptions, type LoadOptions } from '../../lib/load-options';
import { presets } from '../../lib/model/presets';
import { describePlan } from '../../lib/model-info';
import { tiny } from '../cli/cli';
import { expectLozaError } from '../support/errors';
import { goldenCheckpoints } from '../support/goldens';
import { readFiles } from '../cli/cli';
import { tempFolder } from '../support/temp-folder';

const dummy = { device: 'cpu', loadFormat: 'dummy' } as const;
const prompt = Array.from({ length: 200 }, (_, i) => (i * 37) % 300);

/** Logits of some positions, which must be finite and not all alike. */
async function logitsOf(dir: string, options: LoadOptions): Promise<Float32Array> {
  await using model = await LanguageModel.load(dir, { ...dummy, ...options });
  const { logits } = await model.score(prompt, { positions: [0, 150, 199] });
  expect(logits.every(Number.isFinite)).toBe(true);
  expect(Math.max(...logits) - Math.min(...logits)).toBeGreaterThan(0.1);
  return logits;
}

for (const { name, dir, missing } of goldenCheckpoints()) {
  const check = missing ? test.skip : test;
  check(`${name}: config.json is enough`, async () => {
    const folder = tempFolder(readFiles(dir, ['config.json']));
    await logitsOf(folder, { maxTokens: 1024 });
  });
}

test('the seed decides the weights', async () => {
  const same = await logitsOf(tiny, { seed: 5 });
  expect(await logitsOf(tiny, { seed: 5 })).toEqual(same);
  expect(await logitsOf(tiny, { seed: 6 })).not.toEqual(same);
});

test('FP8 configs get FP8 weights with scales, which compute', async () => {
  const sizes = { hidden_size: 128, num_attention_heads: 2, intermediate_size: 256 };
  const small = { ...sizes, moe_intermediate_size: 128, q_lora_rank: 128, vocab_size: 512 };
  const config = { ...presets['deepseek-v3'], ...small };
  const dir = tempFolder({ 'config.json': config });
  const configOverrides = { layers: 4, experts: 16 };
  const options = resolveLoadOptions({ ...dummy, configOverrides });
  const { checkpoint } = await planLoad(dir, options);
  const dtype = (name: string) => checkpoint.tensors.get(`model.layers.3.${name}`)?.dtype;
  expect(dtype('mlp.experts.15.up_proj.weight')).toBe('F8_E4M3');
  expect(dtype('mlp.experts.15.up_proj.weight_scale_inv')).toBe('F32');
  expect(dtype('mlp.gate.weight')).toBe('BF16');
  expect(checkpoint.tensors.get('lm_head.weight')?.dtype).toBe('BF16');
  await logitsOf(dir, { configOverrides, maxTokens: 1024 });
});

/** Parameters without the multi-token heads; model-spec sections 1.1 and 4.1. */
test.each([
  ['longcat-flash', 560.67],
  ['deepseek-v2-lite', 15.71],
  ['deepseek-v3', 671.0],
  ['kimi-k2', 1026],
  ['glm-4.7-flash', 29.9],
])('preset %s has %d billion parameters', async (name, billions) => {
  const { parameters } = describePlan(await planLoad(name, resolveLoadOptions(dummy)));
  expect(Number((parameters / 1e9).toPrecision(3))).toBe(Number(billions.toPrecision(3)));
});

test('sizes can be overridden', async () => {
  const configOverrides = { layers: 4, experts: 64, zeroExperts: 32 };
  const plan = await planLoad('longcat-flash', resolveLoadOptions({ ...dummy, configOverrides }));
  expect(plan.model).toMatchObject({ layers: 4, attentions: 8, experts: 64, zeroExperts: 32 });
});

describe('errors', () => {
  test('text without a tokenizer', async () => {
    const folder = tempFolder(readFiles(tiny, ['config.json']));
    await using model = await LanguageModel.load(folder, dummy);
    const generate = () => model.generate('text', { maxNewTokens: 1 }).result();
    await expectLozaError(generate, 'ERR_LOZA_NOT_FOUND', /no tokenizer\.json/);
    const { tokens } = await model.generate([1, 2], { maxNewTokens: 2, ignoreEos: true }).result();
    expect(tokens).toHaveLength(2);
  });

  test.each<[LoadOptions, RegExp]>([
    [{ configOverrides: { layers: 2 } }, /need loadFormat: "dummy"/],
    [{ ...dummy, configOverrides: { layers: 0 } }, /configOverrides.layers/],
    [{ ...dummy, seed: -1 }, /seed must be/],
    [{ loadFormat: 'random' as 'dummy' }, /loadFormat must be one of/],
  ])('%j', async (options, message) => {
    await expectLozaError(() => resolveLoadOptions(options), 'ERR_LOZA_INVALID_ARG', message);
  });

  test('no folder and no preset', async () => {
    const load = () => LanguageModel.load('longcat-flush', dummy);
    await expectLozaError(load, 'ERR_LOZA_NOT_FOUND', /no config\.json and is no preset/);
  });
});
