import {
  distribution,
  greedy,
  logSoftmax,
  packSettings,
  sample,
  seenMask,
  type SampleSettings,
} from '../../../lib/selftest/cases/sample';
import { compare } from '../../../lib/selftest/compare';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

const plain: SampleSettings = { ...greedy, temperature: 1, seed: 42 };
const vocab = 50;
const seen = [3, 4, 7, 31, 32, 49];
const draws = 20000;

forEachDevice('sample', (lab) => {
  sweep(lab, sample);

  /** One token a row of settings, all from the same logits. */
  const tokensOf = async (
    logits: Float32Array,
    rows: readonly SampleSettings[],
    seenTokens?: readonly number[],
  ) => {
    const { settings, integers } = packSettings(rows);
    const repeated = new Float32Array(logits.length * rows.length);
    rows.forEach((_, row) => repeated.set(logits, row * logits.length));
    return lab.run((ops) => {
      const mask =
        seenTokens &&
        seenMask(
          rows.map(() => seenTokens),
          logits.length,
        );
      const result = ops.sample(
        lab.upload(host('f32', [rows.length, logits.length], repeated)),
        lab.upload(settings),
        lab.upload(integers),
        mask && lab.upload(mask),
        0,
      );
      return { ...result };
    });
  };
  const counters = (settings: SampleSettings, count: number) =>
    Array.from({ length: count }, (_, counter) => ({ ...settings, counter }));

  test.each<[string, Partial<SampleSettings>]>([
    ['temperature 1', {}],
    ['temperature 0.5', { temperature: 0.5 }],
    ['temperature 3', { temperature: 3 }],
    ['top-k 1', { topK: 1 }],
    ['top-k 7', { topK: 7 }],
    ['top-k above the vocabulary', { topK: 1000 }],
    ['top-p 0.9', { topP: 0.9 }],
    ['top-p 0.3', { topP: 0.3 }],
    ['top-p 0', { topP: 0 }],
    ['min-p 0.1', { minP: 0.1 }],
    ['min-p 1', { minP: 1 }],
    ['top-k, then top-p of what is left', { topK: 10, topP: 0.7 }],
    ['all of them', { temperature: 1.3, topK: 20, topP: 0.95, minP: 0.05 }],
    ['a repetition penalty', { penalty: 1.7 }],
    ['a penalty below 1, with top-k', { penalty: 0.6, topK: 6 }],
  ])('%s: draws follow the distribution', async (name, changes) => {
    const logits = new Random(name).normals(vocab, 1.5);
    const settings = { ...plain, ...changes };
    const expected = distribution(logits, seen, settings);
    const { tokens } = await tokensOf(logits, counters(settings, draws), seen);
    const counts = new Float64Array(vocab);
    for (const token of tokens!) counts[token]!++;
    let chiSquare = 0;
    let kept = 0;
    expected.forEach((p, token) => {
      if (p === 0) expect({ token, count: counts[token] }).toEqual({ token, count: 0 });
      else chiSquare += (counts[token]! - draws * p) ** 2 / (draws * p);
      kept += p > 0 ? 1 : 0;
    });
    // Mean k - 1, variance 2 (k - 1), and some more where few draws are expected.
    expect(chiSquare).toBeLessThan(kept - 1 + 5 * Math.sqrt(2 * kept) + 5);
    expected.forEach((p, token) => {
      if (p * draws > 50) expect(counts[token]).toBeGreaterThan(0);
    });
  });

  test('equal logits: top-k keeps the lower ids', async () => {
    const logits = Float32Array.from({ length: 300 }, (_, i) => (i % 3 === 0 ? 1 : 0));
    const { tokens } = await tokensOf(logits, counters({ ...plain, topK: 4 }, 200));
    expect(new Set(tokens)).toEqual(new Set([0, 3, 6, 9]));
  });

  test.each<Partial<SampleSettings>>([
    { topP: 0.8 },
    { topK: 1000 },
    { topK: 3000, topP: 0.5 },
    { minP: 0.2 },
  ])('a large vocabulary keeps exactly what %j keeps', async (changes) => {
    const logits = new Random('large').normals(20000, 1);
    const settings = { ...plain, ...changes };
    const expected = distribution(logits, [], settings);
    const { tokens } = await tokensOf(logits, counters(settings, 300));
    for (const token of tokens!) expect(expected[token]).toBeGreaterThan(0);
    // The rarest kept tokens matter too: their share of many draws is what top-p would cut.
    const rare = [...expected].filter((p) => p > 0).sort((a, b) => a - b);
    const threshold = rare[rare.length >> 1]!;
    const share = rare.reduce((sum, p) => sum + (p < threshold ? p : 0), 0);
    const drawn = tokens!.filter((token) => expected[token]! < threshold).length / 300;
    expect(Math.abs(drawn - share)).toBeLessThan(0.12);
  });

  test('a draw depends on seed and counter, and on nothing else', async () => {
    const logits = new Random('seeds').normals(1000, 0.5);
    const rows = counters(plain, 64);
    const first = (await tokensOf(logits, rows))['tokens']!;
    const alone = (await tokensOf(logits, [rows[37]!]))['tokens']!;
    expect(alone[0]).toBe(first[37]);
    expect([...(await tokensOf(logits, [...rows].reverse()))['tokens']!].reverse()).toEqual([
      ...first,
    ]);
    for (const seed of [43, 42 + 2 ** 32]) {
      const other = (await tokensOf(logits, counters({ ...plain, seed }, 64)))['tokens']!;
      expect(other.filter((token, i) => token === first[i]).length).toBeLessThan(8);
    }
    expect(new Set(first).size).toBeGreaterThan(50);
  });

  test('neighbouring seeds give independent draws', async () => {
    const logits = new Float32Array(2);
    const rows = Array.from({ length: 4000 }, (_, seed) => ({ ...plain, seed, counter: 0 }));
    const { tokens } = await tokensOf(logits, rows);
    const same = tokens!.filter((token, i) => i > 0 && token === tokens![i - 1]).length;
    expect(Math.abs(same / 4000 - 0.5)).toBeLessThan(0.04);
  });

  test('log-probabilities are those of the model, whatever the settings', async () => {
    const logits = new Random('logprobs').normals(vocab, 2);
    const settings = { ...plain, temperature: 2, topK: 5, penalty: 3 };
    const { tokens, logprobs } = await tokensOf(logits, counters(settings, 100), seen);
    const all = logSoftmax(logits);
    const expected = Float64Array.from(tokens!, (token) => all[token]!);
    compare('logprobs', logprobs!, expected, [100], { relative: 1e-6, absolute: 1e-5 });
  });

  test('the chosen token is marked as seen', async () => {
    const before = [[0], [31, 33]];
    const results = await lab.run((ops) => {
      const logits = lab.upload(
        host(
          'f32',
          [2, 40],
          Float32Array.from({ length: 80 }, (_, i) => i % 40),
        ),
      );
      const { settings, integers } = packSettings([greedy, { ...greedy, penalty: 100 }]);
      const mask = lab.upload(seenMask(before, 40));
      const result = ops.sample(logits, lab.upload(settings), lab.upload(integers), mask, 0);
      return { ...result, mask };
    });
    expect([...results['tokens']!]).toEqual([39, 39]);
    expect([...results['mask']!]).toEqual([
      ...seenMask(
        [
          [0, 39],
          [31, 33, 39],
        ],
        40,
      ).values,
    ]);
  });

  test('masked tokens (-inf) are never drawn', async () => {
    const logits = Float32Array.from({ length: 100 }, (_, i) => (i % 10 === 0 ? 0 : -Infinity));
    for (const changes of [{}, { topK: 50 }, { topP: 0.99 }, { temperature: 100 }]) {
      const { tokens } = await tokensOf(logits, counters({ ...plain, ...changes }, 200));
      expect(new Set(tokens)).toEqual(new Set([0, 10, 20, 30, 40, 50, 60, 70, 80, 90]));
    }
  });

  test('the smallest temperatures choose the largest logit', async () => {
    const logits = new Random('cold').normals(1000);
    const best = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
    for (const temperature of [1e-5, 1e-30, 1e-44]) {
      const { tokens } = await tokensOf(logits, counters({ ...plain, temperature, topP: 0.9 }, 20));
      expect(new Set(tokens)).toEqual(new Set([best]));
    }
  });

  testDataChecks(lab.kind).each([
    ['NaN', [0, NaN, 1], /produced NaN logits/],
    ['NaN in the first place', [NaN, 0, 1], /produced NaN logits/],
    ['+inf', [0, Infinity, 1], /produced infinite logits/],
    ['nothing but -inf', [-Infinity, -Infinity], /produced infinite logits/],
  ])('%s in the logits fails the stream', async (_, logits, message) => {
    for (const settings of [greedy, plain])
      await expectLozaError(
        () => tokensOf(Float32Array.from(logits), [settings]),
        'ERR_LOZA_INTERNAL',
        message,
      );
  });

  testDataChecks(lab.kind).each<Partial<SampleSettings>>([
    { temperature: NaN },
    { temperature: -1 },
    { topP: NaN },
    { minP: 1.5 },
    { penalty: 0 },
    { topK: -1 },
  ])('%j cannot be used', async (changes) => {
    const run = () => tokensOf(new Float32Array(4), [{ ...plain, ...changes }]);
    await expectLozaError(run, 'ERR_LOZA_INVALID_ARG', /cannot be used/);
  });

  test('settings for other rows are refused', async () => {
    const run = () =>
      lab.run((ops) => ({
        ...ops.sample(ops.float(2, 8), ops.float(1, 4), ops.integers(2, 4), undefined, 0),
      }));
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /sample settings/);
  });
});
