import { truncateSync } from 'node:fs';
import path from 'node:path';
import { LanguageModel, type LozaErrorCode } from '../../lib';
import {
  bytesOf,
  changeTensors,
  cutToBf16,
  floatsOf,
  quantize,
  readTwin,
  writeShards,
  writeTwin,
  type Twin,
} from '../support/checkpoint-twin';
import { expectLozaError } from '../support/errors';
import { goldenDir } from '../support/goldens';
import { randomTokens } from '../support/prompts';
import type { TensorPart } from '../support/safetensors-file';

const longcat = readTwin(path.join(goldenDir, 'longcat-full'));
const deepseek = readTwin(path.join(goldenDir, 'deepseek-v3-yarn'));
const tokens = randomTokens(150, 320, 9);
const matrices = /(q_a|q_b|kv_a_proj_with_mqa|kv_b|o|gate|up|down)_proj(_with_mqa)?\.weight$/;
const everything = /./;

async function logitsOf(dir: string): Promise<Float32Array> {
  await using model = await LanguageModel.load(dir, { device: 'cpu' });
  return (await model.score(tokens)).logits;
}

describe.each([
  ['LongCat', longcat],
  ['DeepSeek', deepseek],
])('a %s checkpoint gives the same bits', (_, twin) => {
  let expected: Float32Array;
  beforeAll(async () => {
    expected = await logitsOf(writeTwin(twin));
  });

  test.each([1, 3, 7])('in %i shards', async (count) => {
    expect(await logitsOf(writeShards(twin, count))).toEqual(expected);
  });

  test('with tensors in another order', async () => {
    const tensors = [...twin.tensors].reverse();
    expect(await logitsOf(writeTwin({ ...twin, tensors }))).toEqual(expected);
  });

  test('with tensors where their dtype cannot be read in place', async () => {
    const pad = { name: 'model.mtp.pad', dtype: 'U8', shape: [3] };
    const old = { name: 'model.layers.9.rotary_emb.inv_freq', dtype: 'U8', shape: [3] };
    const left = twin === longcat ? pad : old;
    expect(await logitsOf(writeTwin({ ...twin, tensors: [left, ...twin.tensors] }))).toEqual(
      expected,
    );
  });
});

describe.each([
  ['LongCat', longcat],
  ['DeepSeek', deepseek],
])('%s weights in', (_, twin) => {
  const biasless = (tensor: TensorPart) => !tensor.name.endsWith('bias');

  test('bf16 give what the same values in f32 give', async () => {
    const as = (form: 'bf16' | 'f32') =>
      changeTensors(twin, everything, (t) => (biasless(t) ? cutToBf16(t)[form] : t));
    expect(await logitsOf(writeTwin(as('bf16')))).toEqual(await logitsOf(writeTwin(as('f32'))));
  });

  test('block-scaled f8e4m3 give what they stand for in f32', async () => {
    const f8 = changeTensors(twin, matrices, (t) => [quantize(t).f8, quantize(t).scale]);
    const f32 = changeTensors(twin, matrices, (t) => quantize(t).f32);
    expect(await logitsOf(writeTwin(f8))).toEqual(await logitsOf(writeTwin(f32)));
  });

  test('a tied embedding serve as lm_head', async () => {
    const embedding = twin.tensors.find(({ name }) => name === 'model.embed_tokens.weight');
    const copied = changeTensors(twin, /^lm_head/, (t) => ({
      ...t,
      data: embedding?.data ?? new Uint8Array(),
    }));
    const tied = changeTensors(twin, /^lm_head/, () => undefined);
    tied.config = { ...twin.config, tie_word_embeddings: true };
    expect(await logitsOf(writeTwin(tied))).toEqual(await logitsOf(writeTwin(copied)));
  });
});

describe('loading refuses', () => {
  const norm = /^model\.norm\.weight$/;
  const gate = /^model\.layers\.0\.mlps\.0\.gate_proj\.weight$/;
  const change = (names: RegExp, edit: Parameters<typeof changeTensors>[2]) =>
    changeTensors(longcat, names, edit);
  const configured = (config: object): Twin => ({
    ...longcat,
    config: { ...longcat.config, ...config },
  });
  const withScale = (edit: (scale: TensorPart) => TensorPart) =>
    change(gate, (t) => [quantize(t).f8, edit(quantize(t).scale)]);
  const scaled = (value: number) =>
    withScale((scale) => ({ ...scale, data: bytesOf(floatsOf(scale).fill(value)) }));
  const checkpoint = 'ERR_LOZA_CHECKPOINT';
  const config = 'ERR_LOZA_CONFIG';
  const unsupported = 'ERR_LOZA_UNSUPPORTED';

  test.each<[name: string, twin: Twin, code: LozaErrorCode, message: string]>([
    ['a missing tensor', change(norm, () => undefined), checkpoint, 'model.norm.weight is missing'],
    [
      'a tensor nobody uses',
      change(norm, (t) => [t, { ...t, name: 'model.extra' }]),
      checkpoint,
      'model.extra is not used',
    ],
    [
      'an expert too many',
      change(/experts\.0\.up/, (t) => [t, { ...t, name: t.name.replace('.0.up', '.8.up') }]),
      checkpoint,
      'experts.8.up_proj.weight is not used',
    ],
    [
      'a layer too many',
      change(norm, (t) => [t, { ...t, name: 'model.layers.2.input_layernorm.0.weight' }]),
      checkpoint,
      'layers.2',
    ],
    [
      'a transposed matrix',
      change(gate, (t) => ({ ...t, shape: [...t.shape].reverse() })),
      checkpoint,
      'shape [64, 96], expected [96, 64]',
    ],
    [
      'a flattened matrix',
      change(gate, (t) => ({ ...t, shape: [96 * 64] })),
      checkpoint,
      'expected [96, 64]',
    ],
    [
      'half-precision weights',
      change(gate, (t) => ({ ...t, dtype: 'F16', data: new Uint8Array(96 * 64 * 2) })),
      checkpoint,
      'dtype F16',
    ],
    ['integer weights', change(gate, (t) => ({ ...t, dtype: 'I32' })), checkpoint, 'dtype I32'],
    [
      'f8e4m3 without scales',
      change(gate, (t) => quantize(t).f8),
      checkpoint,
      'weight_scale_inv is missing',
    ],
    [
      'scales of the wrong shape',
      withScale((s) => ({ ...s, shape: [1], data: new Uint8Array(4) })),
      checkpoint,
      'scale_inv has shape [1]',
    ],
    [
      'scales of the wrong dtype',
      withScale((s) => ({ ...s, dtype: 'BF16', data: new Uint8Array(2) })),
      checkpoint,
      'dtype BF16, expected F32',
    ],
    [
      'scales without f8e4m3',
      change(gate, (t) => [t, quantize(t).scale]),
      checkpoint,
      'weight_scale_inv is not used',
    ],
    ['a NaN scale', scaled(NaN), checkpoint, 'NaN'],
    ['a negative scale', scaled(-1), checkpoint, '-1'],
    ['a zero scale', scaled(0), checkpoint, 'positive'],
    ['an infinite scale', scaled(Infinity), checkpoint, 'Infinity'],
    [
      'a norm in f8e4m3',
      change(norm, (t) => ({ ...t, dtype: 'F8_E4M3', data: new Uint8Array(64) })),
      checkpoint,
      'model.norm.weight',
    ],
    [
      'experts of several dtypes',
      change(/layers\.0\.mlp\.experts\.1\.up/, (t) => cutToBf16(t).bf16),
      checkpoint,
      'several dtypes',
    ],
    [
      'lm_head beside a tied embedding',
      configured({ tie_word_embeddings: true }),
      checkpoint,
      'lm_head.weight is not used',
    ],
    [
      'an unknown architecture',
      configured({ architectures: ['LlamaForCausalLM'] }),
      unsupported,
      'LlamaForCausalLM',
    ],
    [
      'an unknown model type',
      configured({ architectures: undefined, model_type: 'llama' }),
      unsupported,
      'llama',
    ],
    ['more experts a token than there are', configured({ moe_topk: 13 }), config, 'moe_topk'],
    [
      'another kind of zero expert',
      configured({ zero_expert_type: 'drop' }),
      config,
      'zero_expert_type',
    ],
    ['no query compression', configured({ q_lora_rank: null }), config, 'q_lora_rank'],
    ['a router with a bias', configured({ router_bias: true }), unsupported, 'router_bias'],
    [
      'contradicting layer counts',
      configured({ num_hidden_layers: 7 }),
      config,
      'num_hidden_layers',
    ],
    ['contradicting aliases', configured({ num_experts_per_tok: 4 }), config, 'moe_topk'],
    [
      'a pattern of the wrong length',
      configured({
        streaming_sparse_attention: { layer_type: '01', sink_size: 128, recent_size: 896 },
      }),
      config,
      'layer_type',
    ],
    [
      'a pattern without sizes',
      configured({ streaming_sparse_attention: { layer_type: '0101' } }),
      config,
      'sink_size',
    ],
    [
      'int4 weights',
      configured({ quantization_config: { quant_method: 'compressed-tensors' } }),
      unsupported,
      'compressed-tensors',
    ],
    [
      'fewer layers than the weights have',
      configured({ num_layers: 1, num_hidden_layers: 2 }),
      checkpoint,
      'is not used',
    ],
    [
      'a larger vocabulary than the weights have',
      configured({ vocab_size: 321 }),
      checkpoint,
      'expected [321, 64]',
    ],
  ])('%s', async (_, twin, code, message) => {
    await expectLozaError(
      () => LanguageModel.load(writeTwin(twin), { device: 'cpu' }),
      code,
      message,
    );
  });

  const of = (change: object): Twin => ({ ...deepseek, config: { ...deepseek.config, ...change } });
  test.each<[name: string, twin: Twin, code: LozaErrorCode, message: string]>([
    ['groups that do not divide the experts', of({ n_group: 3 }), config, 'n_group'],
    ['more groups chosen than there are', of({ topk_group: 5 }), config, 'topk_group'],
    [
      'more experts a token than the chosen groups hold',
      of({ num_experts_per_tok: 5 }),
      config,
      'num_experts_per_tok',
    ],
    ['an unknown routing method', of({ topk_method: 'random' }), config, 'topk_method'],
    ['an unknown scoring function', of({ scoring_func: 'relu' }), config, 'scoring_func'],
    ['experts in some layers only', of({ moe_layer_freq: 2 }), unsupported, 'moe_layer_freq'],
    [
      'more dense layers than layers',
      of({ first_k_dense_replace: 4 }),
      config,
      'first_k_dense_replace',
    ],
    [
      'layer types of the wrong length',
      of({ mlp_layer_types: ['dense'] }),
      config,
      'mlp_layer_types',
    ],
    ['biases in attention', of({ attention_bias: true }), unsupported, 'attention_bias'],
    ['rotation by halves', of({ rope_interleave: false }), unsupported, 'rope_interleave'],
  ])('a DeepSeek with %s', async (_, twin, code, message) => {
    await expectLozaError(
      () => LanguageModel.load(writeTwin(twin), { device: 'cpu' }),
      code,
      message,
    );
  });

  test('a truncated file', async () => {
    const dir = writeTwin(longcat);
    truncateSync(path.join(dir, 'model.safetensors'), 500_000);
    await expectLozaError(() => LanguageModel.load(dir), checkpoint, 'model.safetensors');
  });

  test('everything that is wrong, in one error', async () => {
    const twin = changeTensors(
      change(norm, () => undefined),
      gate,
      (t) => ({ ...t, shape: [64, 96] }),
    );
    await expectLozaError(
      () => LanguageModel.load(writeTwin(twin)),
      checkpoint,
      /model\.norm\.weight is missing.*gate_proj\.weight has shape \[64, 96\]|gate_proj.*model\.norm/,
    );
  });
});

test('multi-token prediction heads are left aside and reported', async () => {
  const tensors: TensorPart[] = [
    ...longcat.tensors,
    { name: 'model.mtp.norm.weight', dtype: 'F32', shape: [64] },
  ];
  await using model = await LanguageModel.load(writeTwin({ ...longcat, tensors }), {
    device: 'cpu',
  });
  expect(model.info.leftAside).toEqual({ 'multi-token prediction head': 1 });
});
