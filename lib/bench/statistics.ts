export interface Statistics {
  mean: number;
  /** Sample standard deviation; 0 for one value. */
  sd: number;
}

export function statistics(values: readonly number[]): Statistics {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, sd: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0 };
}

/** The value that `fraction` of the values do not exceed, between neighbours in proportion. */
export function percentile(values: readonly number[], fraction: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * fraction;
  const [lower = NaN, upper = lower] = sorted.slice(Math.floor(place), Math.floor(place) + 2);
  return lower + (upper - lower) * (place % 1);
}

/** a / b, with the spread of both as of independent values. */
export function ratio(a: Statistics, b: Statistics): Statistics {
  const mean = a.mean / b.mean;
  return { mean, sd: mean * Math.hypot(a.sd / a.mean, b.sd / b.mean) };
}

/** Integers of 0..below-1 that a seed decides (mulberry32). */
export function randomIntegers(seed: number, below: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return Math.floor((((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
