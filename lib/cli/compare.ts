/** How far logits lie from what was expected. */
export interface LogitsComparison {
  /** Largest difference, as a fraction of the standard deviation of the expected logits. */
  maxError: number;
  /** Smallest cosine of a row with the expected one. */
  cosine: number;
}

export interface GreedyComparison {
  /** Tokens that were equal before the first difference. */
  equal: number;
  expected: number;
  /** False for a difference where the expected token had won clearly. */
  passed: boolean;
}

export function compareLogits(
  actual: Float32Array,
  expected: Float32Array,
  vocabSize: number,
): LogitsComparison {
  let maxError = actual.length === expected.length ? 0 : Infinity;
  let cosine = 1;
  for (let row = 0; row < expected.length; row += vocabSize) {
    const a = actual.subarray(row, row + vocabSize);
    const e = expected.subarray(row, row + vocabSize);
    cosine = smaller(cosine, cosineOf(a, e));
    maxError = larger(maxError, maxDifference(a, e));
  }
  return { maxError: maxError / standardDeviation(expected), cosine };
}

/**
 * Tokens must be equal up to the first difference, which is allowed only where the expected token
 * won by at most `margin`: what follows it answers another text, and is not compared.
 */
export function compareGreedy(
  actual: ArrayLike<number>,
  expected: Int32Array,
  margins: readonly number[],
  margin: number,
): GreedyComparison {
  const first = expected.findIndex((token, i) => actual[i] !== token);
  if (first < 0) return { equal: expected.length, expected: expected.length, passed: true };
  const won = margins[first] ?? Infinity;
  return { equal: first, expected: expected.length, passed: won <= margin };
}

/** Several comparisons as one. */
export function addUp(comparisons: readonly GreedyComparison[]): GreedyComparison {
  const sum = (values: readonly number[]) => values.reduce((all, value) => all + value, 0);
  return {
    equal: sum(comparisons.map(({ equal }) => equal)),
    expected: sum(comparisons.map(({ expected }) => expected)),
    passed: comparisons.every(({ passed }) => passed),
  };
}

function maxDifference(a: Float32Array, e: Float32Array): number {
  return e.reduce((worst, value, i) => larger(worst, Math.abs((a[i] ?? NaN) - value)), 0);
}

function cosineOf(a: Float32Array, e: Float32Array): number {
  let dot = 0;
  let aa = 0;
  let ee = 0;
  e.forEach((value, i) => {
    const other = a[i] ?? NaN;
    dot += value * other;
    aa += other * other;
    ee += value * value;
  });
  return dot / Math.sqrt(aa * ee);
}

function standardDeviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / values.length);
}

// Math.max and Math.min would do, but these say that NaN is the worst of all.
const larger = (a: number, b: number): number => (Number.isNaN(b) || b > a ? b : a);
const smaller = (a: number, b: number): number => (Number.isNaN(b) || b < a ? b : a);
