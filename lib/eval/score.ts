/** What of an answer was found, of what had to be. */
export interface Score {
  /** Share of the expected strings that the answer contains. */
  recall: number;
  /** All of them. */
  right: boolean;
}

/**
 * Share of `expected` that `answer` contains, whatever the case: RULER's metric, but a number must not
 * be part of a longer one, nor a name of a longer name.
 */
export function scoreAll(answer: string, expected: readonly string[]): Score {
  const found = expected.filter((text) => contains(answer, text)).length;
  return { recall: found / expected.length, right: found === expected.length };
}

/** LongEval's metric: the last whole number of the answer must be the expected one. */
export function scoreLastNumber(answer: string, expected: readonly string[]): Score {
  const right = answer.match(/\d+/g)?.at(-1) === expected[0];
  return { recall: right ? 1 : 0, right };
}

function contains(answer: string, text: string): boolean {
  const literal = text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return new RegExp(`(?<![A-Za-z0-9])${literal}(?![A-Za-z0-9])`, 'i').test(answer);
}

export interface Interval {
  low: number;
  high: number;
}

/** Standard normal quantile of 95 % on both sides. */
const z = 1.959963984540054;

/** Where the true share lies with 95 % confidence when `right` of `count` were right (Wilson). */
export function wilson(right: number, count: number): Interval {
  if (count === 0) return { low: 0, high: 1 };
  const share = right / count;
  const scale = 1 + z ** 2 / count;
  const middle = (share + z ** 2 / (2 * count)) / scale;
  const half = (z / scale) * Math.sqrt((share * (1 - share)) / count + z ** 2 / (4 * count ** 2));
  return { low: Math.max(0, middle - half), high: Math.min(1, middle + half) };
}
