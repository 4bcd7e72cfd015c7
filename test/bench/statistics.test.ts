import { percentile, randomIntegers, ratio, statistics } from '../../lib/bench/statistics';

test('mean and sample standard deviation', () => {
  expect(statistics([1, 3])).toEqual({ mean: 2, sd: Math.SQRT2 });
  expect(statistics([5])).toEqual({ mean: 5, sd: 0 });
});

test('percentiles lie between neighbours in proportion', () => {
  expect(percentile([3, 1, 2], 0.5)).toBe(2);
  expect(percentile([1, 2], 0.5)).toBe(1.5);
  expect(percentile([1, 2, 3, 4, 5], 0.9)).toBeCloseTo(4.6, 12);
  expect(percentile([7], 0.99)).toBe(7);
});

test('a ratio carries the spread of both', () => {
  const { mean, sd } = ratio({ mean: 20, sd: 3 }, { mean: 10, sd: 2 });
  expect(mean).toBe(2);
  expect(sd).toBeCloseTo(2 * Math.hypot(0.15, 0.2), 12);
});

test('random prompts depend on the seed alone and stay in range', () => {
  const draw = (seed: number) => Array.from({ length: 2000 }, randomIntegers(seed, 50));
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
  expect(new Set(draw(1)).size).toBe(50);
  expect(Math.max(...draw(7))).toBe(49);
});
