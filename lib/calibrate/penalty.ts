/** Between these, a median says that the alphas rank; beyond, that they have saturated. */
export const medianRange = [0.05, 0.95] as const;

/** A round of training with one penalty, and the median of the alphas that came out. */
export interface PenaltyTrial {
  penalty: number;
  median: number;
}

export function medianOf(values: ArrayLike<number>): number {
  const sorted = Array.from(values).sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return ((sorted[Math.floor(middle)] ?? NaN) + (sorted[Math.ceil(middle)] ?? NaN)) / 2;
}

/**
 * The penalty to try next; undefined when the last one will do. Alphas that stayed high want twice
 * as much, alphas that all fell half; between a penalty that was too weak and one that was too strong
 * lies their geometric mean.
 */
export function nextPenalty(trials: readonly PenaltyTrial[]): number | undefined {
  const [low, high] = medianRange;
  const last = trials.at(-1);
  if (last === undefined || (last.median > low && last.median < high)) return undefined;
  const weak = trials.filter(({ median }) => median >= high).map(({ penalty }) => penalty);
  const strong = trials.filter(({ median }) => median <= low).map(({ penalty }) => penalty);
  if (weak.length > 0 && strong.length > 0) {
    return Math.sqrt(Math.max(...weak) * Math.min(...strong));
  }
  return weak.length > 0 ? Math.max(...weak) * 2 : Math.min(...strong) / 2;
}
