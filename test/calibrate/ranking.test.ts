import fc from 'fast-check';
import { interleaved, randomPattern } from '../../lib/calibrate/fixed-patterns';
import { medianOf, medianRange, nextPenalty, type PenaltyTrial } from '../../lib/calibrate/penalty';
import { nearTies, rank, streamingCount } from '../../lib/calibrate/ranking';

const ones = (pattern: string) => [...pattern].filter((type) => type === '1').length;

describe('rank', () => {
  test('the lowest scores stream', () => {
    const ranking = rank([0.9, 0.1, 0.5, 0.2], 2);
    expect(ranking).toEqual({
      order: [1, 3, 2, 0],
      layerType: '0101',
      margin: expect.closeTo(0.3, 9),
      tied: [],
      ablationMargin: undefined,
    });
  });

  test('ablations decide between tied scores, and the index between equal ones', () => {
    const scores = [0, 0, 0.9, 0, 0, 0.95];
    expect(nearTies(scores, 3, 0.02)).toEqual([0, 1, 3, 4]);
    const costs: [number, number][] = [0.3, 0.1, 0.1, 0.2].map((cost, n) => [
      [0, 1, 3, 4][n]!,
      cost,
    ]);
    const ranking = rank(scores, 3, new Map(costs));
    expect(ranking.order).toEqual([1, 3, 4, 0, 2, 5]);
    expect(ranking.layerType).toBe('010110');
    expect(ranking.ablationMargin).toBeCloseTo(0.1, 9);
    expect(rank(scores, 3).layerType).toBe('110100');
  });

  test('scores on one side of the cut are no ties', () => {
    expect(nearTies([0, 0, 0, 1], 3, 0.02)).toEqual([]);
    expect(nearTies([0, 1], 0, 0.02)).toEqual([]);
    expect(nearTies([0, 1], 2, 0.02)).toEqual([]);
  });

  test('any scores give a pattern of the right size, and an order of everything', () => {
    const scores = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 1 });
    fc.assert(
      fc.property(scores, fc.double({ min: 0, max: 1, noNaN: true }), (values, sparsity) => {
        const count = streamingCount(values.length, sparsity);
        const tied = nearTies(values, count, 0.1);
        const ablations = new Map(tied.map((i) => [i, (i * 7) % 3]));
        const { layerType, order } = rank(values, count, ablations);
        expect(ones(layerType)).toBe(count);
        expect([...order].sort((a, b) => a - b)).toEqual(values.map((_, i) => i));
        const clear = values.flatMap((_, i) => (tied.includes(i) ? [] : i));
        const streams = clear.filter((i) => layerType[i] === '1').map((i) => values[i]!);
        const full = clear.filter((i) => layerType[i] === '0').map((i) => values[i]!);
        expect(Math.max(-1, ...streams)).toBeLessThanOrEqual(Math.min(2, ...full));
      }),
    );
  });
});

describe('fixed patterns', () => {
  test('interleaved has two parities', () => {
    expect(interleaved(8, 4, 'odd')).toBe('01010101');
    expect(interleaved(8, 4, 'even')).toBe('10101010');
  });

  test.each([
    [5, 2],
    [12, 3],
    [7, 7],
    [7, 0],
    [56, 28],
  ])('of %i attentions exactly %i stream', (attentions, count) => {
    for (const parity of ['odd', 'even'] as const) {
      expect(ones(interleaved(attentions, count, parity))).toBe(count);
    }
    expect(ones(randomPattern(attentions, count, 1))).toBe(count);
  });

  test('a random pattern is that of its seed', () => {
    const patterns = [1, 2, 3, 4, 5].map((seed) => randomPattern(20, 10, seed));
    expect(patterns).toEqual([1, 2, 3, 4, 5].map((seed) => randomPattern(20, 10, seed)));
    expect(new Set(patterns).size).toBe(5);
  });
});

describe('nextPenalty', () => {
  /** Tries penalties on a model whose median falls where the penalty passes `threshold`. */
  const search = (threshold: number, width: number) => {
    const trials: PenaltyTrial[] = [];
    let penalty: number | undefined = 0.05;
    while (penalty !== undefined && trials.length < 40) {
      const share = Math.log(penalty / threshold) / width;
      trials.push({ penalty, median: Math.min(Math.max(0.5 - share, 0), 1) });
      penalty = nextPenalty(trials);
    }
    return trials;
  };

  test.each([0.001, 0.02, 0.05, 0.4, 3])('finds a penalty near %f', (threshold) => {
    const last = search(threshold, 0.3).at(-1)!;
    expect(last.median).toBeGreaterThan(medianRange[0]);
    expect(last.median).toBeLessThan(medianRange[1]);
  });

  test('doubles, halves, and then meets in the middle', () => {
    expect(nextPenalty([{ penalty: 0.05, median: 0.5 }])).toBeUndefined();
    expect(nextPenalty([{ penalty: 0.05, median: 1 }])).toBe(0.1);
    expect(nextPenalty([{ penalty: 0.05, median: 0 }])).toBe(0.025);
    const both = [
      { penalty: 0.04, median: 1 },
      { penalty: 0.09, median: 0 },
    ];
    expect(nextPenalty(both)).toBeCloseTo(0.06, 12);
  });

  test('the median of an even number of values lies between the middle two', () => {
    expect(medianOf([1, 0, 0.5, 0.2])).toBeCloseTo(0.35, 12);
    expect(medianOf([1, 0, 0.5])).toBe(0.5);
  });
});
