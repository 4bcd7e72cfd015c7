import { readRopeConfig, type RopeConfig } from '../../lib/checkpoint/rope-config';
import type { LozaErrorCode } from '../../lib/errors';
import { configOf, yarnKeys } from '../support/configs';
import { expectLozaError } from '../support/errors';

const read = (keys: object, maxPosition = 163_840): RopeConfig =>
  readRopeConfig(configOf(keys), maxPosition);
const withYarn = (change: object): object => ({
  rope_theta: 1e4,
  rope_scaling: { ...yarnKeys, ...change },
});
const yarn = {
  factor: 40,
  originalMaxPosition: 4096,
  betaFast: 32,
  betaSlow: 1,
  mscale: 1,
  mscaleAllDim: 1,
  attentionFactor: undefined,
  truncate: true,
};

describe('readRopeConfig reads', () => {
  const parameters = { ...yarnKeys, type: undefined, rope_type: 'yarn', rope_theta: 1e4 };

  it.each<[name: string, keys: object]>([
    ['no scaling', { rope_theta: 1e4 }],
    [
      'a theta inside rope_parameters',
      { rope_parameters: { rope_type: 'default', rope_theta: 1e4 } },
    ],
    ['the same theta twice', { rope_theta: 1e4, rope_parameters: { rope_theta: 10_000.0 } }],
    ['null', { rope_theta: 1e4, rope_scaling: null, rope_parameters: null }],
    ['the type default', { rope_theta: 1e4, rope_scaling: { type: 'default' } }],
    ['rope_interleave', { rope_theta: 1e4, rope_interleave: true }],
  ])('plain rotations from %s', (_, keys) => {
    expect(read(keys)).toEqual({ theta: 1e4, scaling: null });
  });

  it.each<[name: string, keys: object]>([
    ['rope_scaling', withYarn({})],
    ['rope_parameters', { rope_parameters: parameters }],
    ['the name deepseek_yarn', withYarn({ type: 'deepseek_yarn' })],
    ['both spellings of the type', withYarn({ rope_type: 'yarn' })],
    [
      'both spellings of the section',
      { ...withYarn({}), rope_parameters: { ...yarnKeys, rope_theta: 1e4 } },
    ],
    ['a factor that is null', withYarn({ factor: null })],
    ['an attention_factor that is null', withYarn({ attention_factor: null })],
    ['no betas', withYarn({ beta_fast: undefined, beta_slow: undefined })],
  ])('YaRN from %s', (_, keys) => {
    expect(read(keys)).toEqual({ theta: 1e4, scaling: yarn });
  });

  it.each<[name: string, change: object, expected: object]>([
    ['a fraction', { factor: 1.5 }, { factor: 1.5 }],
    [
      'no mscales',
      { mscale: undefined, mscale_all_dim: null },
      { mscale: undefined, mscaleAllDim: undefined },
    ],
    ['mscales of 0', { mscale: 0, mscale_all_dim: 0 }, { mscale: 0, mscaleAllDim: 0 }],
    ['an attention_factor', { attention_factor: 0.5 }, { attentionFactor: 0.5 }],
    ['truncate', { truncate: false }, { truncate: false }],
    ['equal betas', { beta_fast: 1 }, { betaFast: 1, betaSlow: 1 }],
  ])('YaRN with %s', (_, change, expected) => {
    expect(read(withYarn(change)).scaling).toMatchObject(expected);
  });
});

describe('readRopeConfig rejects', () => {
  const section = 'rope_scaling';
  it.each<[name: string, keys: object, message: string, code?: LozaErrorCode]>([
    ['no theta', {}, 'rope_theta is missing'],
    ['a theta of 0', { rope_theta: 0 }, 'rope_theta must be a finite number above 1, got 0'],
    ['a theta of 1', { rope_theta: 1 }, 'rope_theta must be'],
    ['a negative theta', { rope_theta: -1e4 }, 'rope_theta must be'],
    ['a theta as text', { rope_theta: '1e4' }, 'rope_theta must be'],
    [
      'a nested theta of 0',
      { rope_parameters: { rope_theta: 0 } },
      'rope_parameters.rope_theta must be',
    ],
    [
      'two thetas',
      { rope_theta: 1e4, rope_parameters: { rope_theta: 5e4 } },
      'rope_theta and rope_parameters.rope_theta must agree, got 10000 and 50000',
    ],
    [
      'a section as text',
      { rope_theta: 1e4, rope_scaling: 'yarn' },
      'rope_scaling must be an object',
    ],
    [
      'two sections',
      { ...withYarn({}), rope_parameters: { ...yarnKeys, factor: 8 } },
      'rope_scaling and rope_parameters mean the same',
    ],
    [
      'a plain and a YaRN section',
      { ...withYarn({}), rope_parameters: { rope_type: 'default' } },
      'rope_scaling and rope_parameters mean the same',
    ],
    [
      'two types',
      withYarn({ rope_type: 'default' }),
      'rope_scaling.rope_type and rope_scaling.type mean the same',
    ],
    [
      'a factor below 1',
      withYarn({ factor: 0.5 }),
      `${section}.factor must be a finite number at least 1, got 0.5`,
    ],
    ['a negative factor', withYarn({ factor: -4 }), `${section}.factor must be`],
    ['a factor as text', withYarn({ factor: '40' }), `${section}.factor must be`],
    [
      'an implied factor below 1',
      withYarn({ factor: null, original_max_position_embeddings: 2 ** 18 }),
      'max_position_embeddings / rope_scaling.original_max_position_embeddings must be at least 1',
    ],
    [
      'no original length',
      withYarn({ original_max_position_embeddings: undefined }),
      `${section}.original_max_position_embeddings is missing`,
    ],
    [
      'an original length of 0',
      withYarn({ original_max_position_embeddings: 0 }),
      'original_max_position_embeddings must be an integer',
    ],
    [
      'a beta of 0',
      withYarn({ beta_slow: 0 }),
      `${section}.beta_slow must be a finite number above 0`,
    ],
    [
      'betas the wrong way round',
      withYarn({ beta_fast: 1, beta_slow: 32 }),
      `${section}.beta_fast must be at least beta_slow, got 1 and 32`,
    ],
    ['a negative mscale', withYarn({ mscale: -1 }), `${section}.mscale must be`],
    [
      'a negative mscale_all_dim',
      withYarn({ mscale_all_dim: -1 }),
      `${section}.mscale_all_dim must be`,
    ],
    [
      'an attention_factor of 0',
      withYarn({ attention_factor: 0 }),
      `${section}.attention_factor must be`,
    ],
    [
      'truncate as a number',
      withYarn({ truncate: 1 }),
      `${section}.truncate must be true or false`,
    ],
    ...['linear', 'dynamic', 'llama3', 'longrope', 'su', 'YARN'].map(
      (type): [string, object, string, LozaErrorCode] => [
        `the type ${type}`,
        withYarn({ type }),
        `${section}.type must be "default", "yarn" or "deepseek_yarn", got "${type}"`,
        'ERR_LOZA_UNSUPPORTED',
      ],
    ),
    [
      'half rotations',
      { rope_theta: 1e4, rope_interleave: false },
      'rope_interleave must be true',
      'ERR_LOZA_UNSUPPORTED',
    ],
  ])('%s', async (_, keys, message, code = 'ERR_LOZA_CONFIG') => {
    await expectLozaError(() => read(keys), code, message);
  });

  it('an infinite factor', async () => {
    const text =
      '{"rope_theta":1e4,"rope_scaling":{"type":"yarn","factor":1e999,"original_max_position_embeddings":1}}';
    const run = (): unknown => readRopeConfig(configOf(text), 1);
    await expectLozaError(run, 'ERR_LOZA_CONFIG', 'rope_scaling.factor must be a finite number');
  });
});
