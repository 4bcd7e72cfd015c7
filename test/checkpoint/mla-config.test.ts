import { readdirSync } from 'node:fs';
import { join } from 'node:path';

import { openCheckpoint } from '../../lib/checkpoint/checkpoint';
import { readMlaConfig } from '../../lib/checkpoint/mla-config';
import { readSafetensorsHeader } from '../../lib/checkpoint/safetensors';
import type { LozaErrorCode } from '../../lib/errors';
import { configOf, mlaKeys } from '../support/configs';
import { expectLozaError } from '../support/errors';

const read = (change: object = {}): ReturnType<typeof readMlaConfig> =>
  readMlaConfig(configOf({ ...mlaKeys, ...change }));

describe('readMlaConfig', () => {
  it('reads what all MLA models share', () => {
    expect(read()).toEqual({
      vocabSize: 320,
      hiddenSize: 64,
      heads: 4,
      qLoraRank: 24,
      kvLoraRank: 32,
      nopeDim: 16,
      ropeDim: 8,
      valueDim: 24,
      rmsNormEps: 1e-5,
      maxPosition: 2048,
      tieWordEmbeddings: false,
      rope: { theta: 10_000, scaling: null },
      streaming: undefined,
    });
  });

  it.each<[name: string, change: object, expected: object]>([
    ['a query that is not compressed', { q_lora_rank: null }, { qLoraRank: null }],
    ['no q_lora_rank at all', { q_lora_rank: undefined }, { qLoraRank: null }],
    ['tied embeddings', { tie_word_embeddings: true }, { tieWordEmbeddings: true }],
    ['the written defaults', { attention_bias: false, hidden_act: 'silu', qk_head_dim: 24 }, {}],
    ['as many key heads', { num_key_value_heads: 4 }, { heads: 4 }],
    ['a head_dim of any meaning', { head_dim: 'what' }, {}],
    ['an auto_map, unread', { auto_map: { AutoModel: 'evil.py' } }, {}],
    [
      'FP8 in blocks',
      { quantization_config: { quant_method: 'fp8', weight_block_size: [128, 128] } },
      {},
    ],
    ['FP8 without a block size', { quantization_config: { quant_method: 'fp8' } }, {}],
    [
      'the caps',
      { vocab_size: 2 ** 21, hidden_size: 65_536, num_attention_heads: 1_024 },
      { heads: 1_024 },
    ],
    ['2^24 positions', { max_position_embeddings: 2 ** 24 }, { maxPosition: 2 ** 24 }],
  ])('accepts %s', (_, change, expected) => {
    expect(read(change)).toMatchObject(expected);
  });

  it.each(Object.keys(mlaKeys).filter((key) => key !== 'q_lora_rank'))('needs %s', async (key) => {
    await expectLozaError(() => read({ [key]: undefined }), 'ERR_LOZA_CONFIG', `${key} is missing`);
  });

  it.each<[key: string, above: number]>([
    ['vocab_size', 2 ** 21 + 1],
    ['hidden_size', 65_537],
    ['num_attention_heads', 1_025],
    ['q_lora_rank', 65_537],
    ['kv_lora_rank', 65_537],
    ['qk_nope_head_dim', 4_097],
    ['qk_rope_head_dim', 4_098],
    ['v_head_dim', 4_097],
    ['max_position_embeddings', 2 ** 24 + 1],
  ])('rejects %s of 0, -1 and %i', async (key, above) => {
    for (const value of [0, -1, above]) {
      const message = new RegExp(`${key} must be an integer of 1\\.\\.\\d+, got ${value}`);
      await expectLozaError(() => read({ [key]: value }), 'ERR_LOZA_CONFIG', message);
    }
  });

  const quantization = (keys: object): object => ({ quantization_config: keys });
  it.each<[name: string, change: object, code: LozaErrorCode, message: string]>([
    [
      'an eps of 0',
      { rms_norm_eps: 0 },
      'ERR_LOZA_CONFIG',
      'rms_norm_eps must be a finite number above 0',
    ],
    ['a negative eps', { rms_norm_eps: -1e-6 }, 'ERR_LOZA_CONFIG', 'rms_norm_eps must be'],
    [
      'an odd rope dimension',
      { qk_rope_head_dim: 7 },
      'ERR_LOZA_CONFIG',
      'qk_rope_head_dim must be even, got 7',
    ],
    [
      'fewer key heads',
      { num_key_value_heads: 2 },
      'ERR_LOZA_CONFIG',
      'num_key_value_heads must equal num_attention_heads (4), got 2',
    ],
    [
      'another qk_head_dim',
      { qk_head_dim: 25 },
      'ERR_LOZA_CONFIG',
      'qk_head_dim must equal qk_nope_head_dim + qk_rope_head_dim (24), got 25',
    ],
    [
      'a tie flag as text',
      { tie_word_embeddings: 'no' },
      'ERR_LOZA_CONFIG',
      'tie_word_embeddings must be',
    ],
    ['a bias', { attention_bias: true }, 'ERR_LOZA_UNSUPPORTED', 'attention_bias must be false'],
    [
      'another activation',
      { hidden_act: 'gelu' },
      'ERR_LOZA_UNSUPPORTED',
      'hidden_act must be "silu", got "gelu"',
    ],
    [
      'half rotations',
      { rope_interleave: false },
      'ERR_LOZA_UNSUPPORTED',
      'rope_interleave must be true',
    ],
    [
      'int4',
      quantization({ quant_method: 'compressed-tensors', format: 'pack-quantized' }),
      'ERR_LOZA_UNSUPPORTED',
      'quantization_config.quant_method must be "fp8", got "compressed-tensors" (pack-quantized)',
    ],
    ['AWQ', quantization({ quant_method: 'awq' }), 'ERR_LOZA_UNSUPPORTED', 'got "awq"'],
    [
      'another block',
      quantization({ quant_method: 'fp8', weight_block_size: [64, 128] }),
      'ERR_LOZA_UNSUPPORTED',
      'weight_block_size must be [128, 128], got [64, 128]',
    ],
    [
      'a block of one number',
      quantization({ quant_method: 'fp8', weight_block_size: 128 }),
      'ERR_LOZA_UNSUPPORTED',
      'got [128]',
    ],
    [
      'a quantisation without a name',
      quantization({}),
      'ERR_LOZA_CONFIG',
      'quantization_config.quant_method is missing',
    ],
    [
      'a quantisation as text',
      quantization('fp8' as unknown as object),
      'ERR_LOZA_CONFIG',
      'quantization_config must be an object',
    ],
    [
      'a streaming section as text',
      { streaming_sparse_attention: '01' },
      'ERR_LOZA_CONFIG',
      'streaming_sparse_attention must be an object',
    ],
  ])('rejects %s', async (_, change, code, message) => {
    await expectLozaError(() => read(change), code, message);
  });
});

describe('the goldens', () => {
  const root = join(__dirname, '../golden');

  it.each(readdirSync(root).sort())('%s opens and describes an MLA model', async (name) => {
    const { architecture, config, tensors, files } = await openCheckpoint(join(root, name));
    const { vocabSize, hiddenSize } = readMlaConfig(config);
    expect(architecture).toMatch(/ForCausalLM$/);
    expect(tensors.get('model.embed_tokens.weight')?.shape).toEqual([vocabSize, hiddenSize]);
    expect(files.length).toBeGreaterThan(0);
    const expected = await readSafetensorsHeader(join(root, name, 'expected.safetensors'));
    expect(expected.tensors.size).toBeGreaterThan(0);
  });
});
