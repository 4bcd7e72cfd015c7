import { scoreAll, scoreLastNumber, wilson } from '../../lib/eval/score';

describe('scoreAll', () => {
  test.each([
    ['violin:80364', ['80364'], 1],
    ['It is 80364.', ['80364'], 1],
    ['803641', ['80364'], 0],
    ['180364', ['80364'], 0],
    ['river: 1, stone: 2', ['1', '2'], 1],
    ['river: 1', ['1', '2'], 0.5],
    ['abcde and FGHIJ', ['ABCDE', 'fghij'], 1],
    ['ABCDEF', ['ABCDE'], 0],
    ['', ['1'], 0],
    ['a+b', ['a+b'], 1],
  ])('%j has of %j the share %d', (answer, expected, recall) => {
    expect(scoreAll(answer, expected)).toEqual({ recall, right: recall === 1 });
  });
});

describe('scoreLastNumber', () => {
  test.each([
    ['The <REGISTER_CONTENT> in line a-b is <6680>.', '6680', true],
    ['6680 is in line 3', '6680', false],
    ['line 3: 6680', '6680', true],
    ['<66801>', '6680', false],
    ['no number', '6680', false],
  ])('%j for %j: %j', (answer, expected, right) => {
    expect(scoreLastNumber(answer, [expected]).right).toBe(right);
  });
});

describe('wilson', () => {
  // Reference values: Newcombe (1998), table I, method 3.
  test.each([
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ])('%d of %d: %d to %d', (right, count, low, high) => {
    const interval = wilson(right, count);
    expect(interval.low).toBeCloseTo(low, 4);
    expect(interval.high).toBeCloseTo(high, 4);
  });

  test('lies within 0 and 1, and holds the share', () => {
    for (let right = 0; right <= 50; right++) {
      const { low, high } = wilson(right, 50);
      expect(low).toBeGreaterThanOrEqual(0);
      expect(low).toBeLessThanOrEqual(right / 50);
      expect(high).toBeGreaterThanOrEqual(right / 50 - 1e-12);
      expect(high).toBeLessThanOrEqual(1);
    }
  });

  test('nothing known: everything is possible', () => {
    expect(wilson(0, 0)).toEqual({ low: 0, high: 1 });
  });
});
