import type { RopeConfig, YarnScaling } from '../../lib/checkpoint/rope-config';
import { extendRope, ropeTable } from '../../lib/layers/rope';
import { expectLozaError } from '../support/errors';

const yarn = (theta: number, change: Partial<YarnScaling> = {}): RopeConfig => ({
  theta,
  scaling: {
    ...{ factor: 40, originalMaxPosition: 4096, betaFast: 32, betaSlow: 1 },
    ...{ mscale: 1, mscaleAllDim: 1, truncate: true },
    ...change,
  },
});

describe('ropeTable', () => {
  it('without YaRN', () => {
    const { inverseFrequencies, ...rest } = ropeTable({ theta: 1e4, scaling: null }, 8);
    const expected = [1, 0.1, 0.01, 0.001];
    expected.forEach((f, pair) => expect(inverseFrequencies[pair]).toBeCloseTo(f, 15));
    expect(rest).toEqual({ attentionScale: 1, softmaxFactor: 1, low: 4, high: 4 });
  });

  // Check values of the released models as published, computed apart from this code, d = 64.
  it.each<[model: string, rope: RopeConfig, low: number, high: number, factor: number]>([
    ['DeepSeek-V2', yarn(1e4, { mscale: 0.707, mscaleAllDim: 0.707 }), 10, 23, 1.589626],
    ['DeepSeek-V3', yarn(1e4), 10, 23, 1.873854],
    ['Kimi-K2', yarn(5e4, { factor: 32, betaFast: 1 }), 19, 20, 1.81326],
    ['Kimi-K2.5', yarn(5e4, { factor: 64 }), 8, 20, 2.00474],
    ['LongCat Lite-Sparse', yarn(1e6, { factor: 120, originalMaxPosition: 8192 }), 8, 17, 2.186699],
  ])('of %s', (_, rope, low, high, factor) => {
    const table = ropeTable(rope, 64);
    expect([table.low, table.high, table.attentionScale]).toEqual([low, high, 1]);
    expect(table.softmaxFactor).toBeCloseTo(factor, 6);
    const plain = ropeTable({ ...rope, scaling: null }, 64).inverseFrequencies;
    const { inverseFrequencies } = table;
    expect([...inverseFrequencies.subarray(0, low + 1)]).toEqual([...plain.subarray(0, low + 1)]);
    const slow = [...plain.subarray(high)].map((f) => f / (rope.scaling?.factor ?? NaN));
    expect([...inverseFrequencies.subarray(high)]).toEqual(slow);
  });

  it.each<[model: string, rope: RopeConfig, low: number, high: number]>([
    ['DeepSeek-V2', yarn(1e4, { truncate: false }), 10.472, 22.513],
    ['Lite-Sparse', yarn(1e6, { originalMaxPosition: 8192, truncate: false }), 8.587, 16.614],
    ['Kimi-K2', yarn(5e4, { betaFast: 1, truncate: false }), 19.165, 19.166],
  ])('of %s without truncation', (_, rope, low, high) => {
    const table = ropeTable(rope, 64);
    expect(table.low).toBeCloseTo(low, 3);
    expect(table.high).toBeCloseTo(high, 3);
  });

  it('mixes the pairs between the borders', () => {
    const { inverseFrequencies } = ropeTable(yarn(1e4), 64);
    const ramp = (16 - 10) / (23 - 10);
    const frequency = 1e4 ** (-32 / 64);
    expect(inverseFrequencies[16]).toBeCloseTo(
      (frequency / 40) * ramp + frequency * (1 - ramp),
      15,
    );
  });

  it('keeps equal borders apart and clamps them to 0 and d - 1', () => {
    const equal = ropeTable(yarn(1e4, { betaFast: 1, originalMaxPosition: 6, truncate: true }), 64);
    expect([equal.low, equal.high]).toEqual([0, 0.001]);
    const wide = ropeTable(yarn(2, { originalMaxPosition: 2 ** 24 }), 64);
    expect(wide.high).toBe(63);
    expect([...wide.inverseFrequencies].every(Number.isFinite)).toBe(true);
  });

  const m = (weight: number): number => 0.1 * weight * Math.log(40) + 1;
  it.each<[name: string, change: Partial<YarnScaling>, scale: number, softmax: number]>([
    ['no mscales', { mscale: undefined, mscaleAllDim: undefined }, m(1), 1],
    ['only mscale', { mscale: 2, mscaleAllDim: undefined }, m(1), 1],
    ['only mscale_all_dim', { mscale: undefined, mscaleAllDim: 2 }, m(1), m(2) ** 2],
    ['mscales of 0', { mscale: 0, mscaleAllDim: 0 }, m(1), 1],
    ['different mscales', { mscale: 1, mscaleAllDim: 0.5 }, m(1) / m(0.5), m(0.5) ** 2],
    ['an attention factor', { attentionFactor: 0.5 }, 0.5, m(1) ** 2],
    ['factor 1', { factor: 1 }, 1, 1],
  ])('scales with %s', (_, change, scale, softmax) => {
    const table = ropeTable(yarn(1e4, change), 64);
    expect(table.attentionScale).toBeCloseTo(scale, 14);
    expect(table.softmaxFactor).toBeCloseTo(softmax, 14);
  });
});

describe('extendRope', () => {
  const plain: RopeConfig = { theta: 1e7, scaling: null };

  it('gives a plain model YaRN from its own length, with all of M in the softmax', () => {
    const { rope, maxPosition } = extendRope(plain, 131_072, 4);
    expect(maxPosition).toBe(524_288);
    expect(rope).toEqual(yarn(1e7, { factor: 4, originalMaxPosition: 131_072 }));
    const { attentionScale, softmaxFactor } = ropeTable(rope, 64);
    expect([attentionScale, softmaxFactor]).toEqual([1, (0.1 * Math.log(4) + 1) ** 2]);
  });

  it('replaces only the factor of a model that has YaRN', () => {
    const before = yarn(1e4, { mscale: 0.707, mscaleAllDim: 0.707 });
    const { rope, maxPosition } = extendRope(before, 163_840, 80);
    expect(maxPosition).toBe(327_680);
    expect(rope).toEqual({ theta: 1e4, scaling: { ...before.scaling, factor: 80 } });
  });

  it.each<[name: string, rope: RopeConfig, from: number, factor: number, to: number]>([
    ['by 1', plain, 8192, 1, 8192],
    ['by a fraction', plain, 8191, 1.5, 12_287],
    ['up to 2^20', plain, 131_072, 10, 2 ** 20],
    ['not below what the model has', plain, 2 ** 21, 2, 2 ** 21],
  ])('%s', (_, rope, from, factor, to) => {
    expect(extendRope(rope, from, factor).maxPosition).toBe(to);
  });

  it.each<[value: unknown]>([[0.5], [0], [-2], [NaN], [Infinity], ['2'], [undefined], [2n]])(
    'rejects a factor of %p',
    async (value) => {
      const extend = (): unknown => extendRope(plain, 8192, value as number);
      const message = 'rope.yarnFactor must be a finite number of at least 1, got';
      await expectLozaError(extend, 'ERR_LOZA_INVALID_ARG', message);
    },
  );

  it('rejects a factor that would shorten the model', async () => {
    const extend = (): unknown => extendRope(yarn(1e4), 163_840, 20);
    const message =
      "must not shorten the model's 163840 positions, got 4096 original positions * 20 = 81920. " +
      'The factor counts from the original length: use at least 40';
    await expectLozaError(extend, 'ERR_LOZA_INVALID_ARG', message);
  });
});
