import { compareGreedy, compareLogits } from '../../lib/cli/compare';

const expected = Float32Array.of(1, -1, 1, -1); // standard deviation 1

test('the largest error is counted in standard deviations', () => {
  expect(compareLogits(expected, expected, 2)).toEqual({ maxError: 0, cosine: expect.closeTo(1) });
  const actual = Float32Array.of(1, -1, 1, -0.75);
  const { maxError, cosine } = compareLogits(actual, expected, 2);
  expect(maxError).toBe(0.25);
  expect(cosine).toBeCloseTo(1.75 / Math.sqrt(2 * 1.5625), 6);
});

test('NaN anywhere, or a missing row, is no match', () => {
  for (const actual of [
    Float32Array.of(NaN, -1, 1, -1),
    Float32Array.of(1, -1, 1, NaN),
    Float32Array.of(1, -1),
  ]) {
    const { maxError, cosine } = compareLogits(actual, expected, 2);
    expect(maxError <= 1e9).toBe(false);
    expect(cosine >= 0).toBe(false);
  }
});

test('greedy tokens may differ where the win was small, and are not compared from there on', () => {
  const greedy = Int32Array.of(5, 6, 7, 8);
  const margins = [1, 0.005, 1, 1];
  const compare = (tokens: number[]) => compareGreedy(tokens, greedy, margins, 0.01);
  expect(compare([5, 6, 7, 8])).toEqual({ equal: 4, expected: 4, passed: true });
  expect(compare([5, 9, 1, 1])).toEqual({ equal: 1, expected: 4, passed: true });
  expect(compare([5, 6, 9, 8])).toEqual({ equal: 2, expected: 4, passed: false });
  expect(compare([5])).toEqual({ equal: 1, expected: 4, passed: true }); // cut off at a small win
  expect(compare([])).toEqual({ equal: 0, expected: 4, passed: false });
});

test('without margins every greedy token must be equal', () => {
  expect(compareGreedy([1, 3], Int32Array.of(1, 2), [], 0.01).passed).toBe(false);
  expect(compareGreedy([], new Int32Array(0), [], 0.01).passed).toBe(true);
});
