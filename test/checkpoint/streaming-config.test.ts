import {
  readAttentionPattern,
  resolveAttentionPattern,
  type AttentionOption,
  type AttentionPattern,
} from '../../lib/checkpoint/streaming-config';
import type { LozaErrorCode } from '../../lib/errors';
import { configOf } from '../support/configs';
import { expectLozaError } from '../support/errors';

const section = 'streaming_sparse_attention';
const keys = { layer_type: '0110', sink_size: 128, recent_size: 896, sparsity: 0.5 };
const read = (content: unknown, attentions = 4): AttentionPattern | undefined =>
  readAttentionPattern(configOf({ [section]: content }).object(section), attentions);

describe('readAttentionPattern', () => {
  it.each<[name: string, content: unknown, expected: AttentionPattern | undefined]>([
    ['nothing', undefined, undefined],
    ['null', null, undefined],
    ['the paper’s sizes', keys, { layerType: '0110', sinkBlocks: 1, localBlocks: 7 }],
    [
      'sizes to round up',
      { ...keys, sink_size: 129, recent_size: 1 },
      { layerType: '0110', sinkBlocks: 2, localBlocks: 1 },
    ],
    [
      'no sparsity',
      { ...keys, sparsity: undefined },
      { layerType: '0110', sinkBlocks: 1, localBlocks: 7 },
    ],
    [
      'layer_type beside head_score',
      { ...keys, head_score: 'file' },
      { layerType: '0110', sinkBlocks: 1, localBlocks: 7 },
    ],
  ])('reads %s', (_, content, expected) => {
    expect(read(content)).toEqual(expected);
  });

  it.each<[name: string, content: object, message: string, code?: LozaErrorCode]>([
    ['no layer_type', { ...keys, layer_type: undefined }, `${section}.layer_type is missing`],
    [
      'an empty one',
      { ...keys, layer_type: '' },
      'must be 4 characters 0 or 1, one for each attention, got 0 characters',
    ],
    [
      'a short one',
      { ...keys, layer_type: '011' },
      `${section}.layer_type must be 4 characters 0 or 1`,
    ],
    ['a long one', { ...keys, layer_type: '01100' }, 'got 5 characters: "01100"'],
    ['other characters', { ...keys, layer_type: '01x0' }, 'got 4 characters: "01x0"'],
    ['a line break', { ...keys, layer_type: '011\n' }, 'must be 4 characters 0 or 1'],
    ['other digits', { ...keys, layer_type: '01١0' }, 'must be 4 characters 0 or 1'],
    ['an array', { ...keys, layer_type: [0, 1, 1, 0] }, 'layer_type must be a string'],
    ['no sink_size', { ...keys, sink_size: undefined }, `${section}.sink_size is missing`],
    [
      'a sink_size of 0',
      { ...keys, sink_size: 0 },
      `${section}.sink_size must be an integer of 1..`,
    ],
    ['no recent_size', { ...keys, recent_size: undefined }, `${section}.recent_size is missing`],
    ['a recent_size of 0', { ...keys, recent_size: 0 }, `${section}.recent_size must be`],
    ['a recent_size of 1.5', { ...keys, recent_size: 1.5 }, `${section}.recent_size must be`],
    [
      'a recent_size too large',
      { ...keys, recent_size: 2 ** 24 + 1 },
      `${section}.recent_size must be`,
    ],
    ['a sparsity of 2', { ...keys, sparsity: 2 }, `${section}.sparsity must be`],
    [
      'single heads',
      { head_score: 'scores.tsv', sparsity: 0.5 },
      `${section}.head_score without layer_type`,
      'ERR_LOZA_UNSUPPORTED',
    ],
  ])('rejects %s', async (_, content, message, code = 'ERR_LOZA_CONFIG') => {
    await expectLozaError(() => read(content), code, message);
  });
});

describe('resolveAttentionPattern', () => {
  const config = { layerType: '0110', sinkBlocks: 2, localBlocks: 3 };
  const layerType = '1000';

  it.each<
    [
      name: string,
      option: AttentionOption,
      from: AttentionPattern | undefined,
      expected: object | undefined,
    ]
  >([
    ['auto without a config', 'auto', undefined, undefined],
    ['auto', 'auto', config, config],
    ['auto where nothing streams', 'auto', { ...config, layerType: '0000' }, undefined],
    ['full', 'full', config, undefined],
    [
      'a pattern with the paper’s blocks',
      { layerType },
      undefined,
      { layerType, sinkBlocks: 1, localBlocks: 7 },
    ],
    [
      'a pattern with the config’s blocks',
      { layerType },
      config,
      { layerType, sinkBlocks: 2, localBlocks: 3 },
    ],
    [
      'a pattern with its own blocks',
      { layerType, sinkBlocks: 4, localBlocks: 9 },
      config,
      { layerType, sinkBlocks: 4, localBlocks: 9 },
    ],
    [
      'undefined blocks',
      { layerType, sinkBlocks: undefined },
      config,
      { layerType, sinkBlocks: 2, localBlocks: 3 },
    ],
    ['a pattern where nothing streams', { layerType: '0000' }, config, undefined],
  ])('%s', (_, option, from, expected) => {
    expect(resolveAttentionPattern(option, from, 4)).toEqual(expected);
  });

  it.each<[name: string, option: unknown, message: string]>([
    [
      'another word',
      'sparse',
      'attention must be "auto", "full" or an object with layerType, got "sparse"',
    ],
    ['undefined', undefined, 'attention must be'],
    ['null', null, 'attention must be'],
    ['an array', ['0110'], 'attention must be'],
    ['no layerType', { sinkBlocks: 1 }, 'attention must be'],
    [
      'a short layerType',
      { layerType: '01' },
      'attention.layerType must be 4 characters 0 or 1, one for each attention, got 2',
    ],
    ['other characters', { layerType: '01a0' }, 'attention.layerType must be'],
    [
      'a number',
      { layerType: 110 },
      'attention.layerType must be 4 characters 0 or 1, one for each attention, got 110',
    ],
    [
      'sinkBlocks of 0',
      { layerType, sinkBlocks: 0 },
      'attention.sinkBlocks must be an integer of 1..131072, got 0',
    ],
    ['localBlocks of 1.5', { layerType, localBlocks: 1.5 }, 'attention.localBlocks must be'],
    ['localBlocks of NaN', { layerType, localBlocks: NaN }, 'attention.localBlocks must be'],
    ['localBlocks as text', { layerType, localBlocks: '7' }, 'attention.localBlocks must be'],
    ['too many localBlocks', { layerType, localBlocks: 131_073 }, 'attention.localBlocks must be'],
    [
      'a misspelt key',
      { layerType, sinkBlock: 1 },
      'layerType, sinkBlocks and localBlocks, got "sinkBlock"',
    ],
  ])('rejects %s', async (_, option, message) => {
    const resolve = (): unknown => resolveAttentionPattern(option as AttentionOption, config, 4);
    await expectLozaError(resolve, 'ERR_LOZA_INVALID_ARG', message);
  });
});
