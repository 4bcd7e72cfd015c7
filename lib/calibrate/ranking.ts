/** Which attentions become streaming, and how sure that is. */
export interface Ranking {
  /** All attentions, the most replaceable first. */
  order: number[];
  /** One character an attention: '1' = streaming, '0' = full. */
  layerType: string;
  /** How far apart the scores of the last streaming and of the first full attention lie. */
  margin: number;
  /** Attentions whose scores lay so close to the cut that their ablation decided. */
  tied: number[];
  /** The same as `margin` between the ablations of tied attentions, where that decided the cut. */
  ablationMargin: number | undefined;
}

/** Attentions that stream at a sparsity: rounded down, so that no more than asked for is lost. */
export function streamingCount(attentions: number, sparsity: number): number {
  return Math.floor(attentions * sparsity + 1e-9);
}

/**
 * The attentions whose score lies within `width` of the cut, if the scores on both sides of it do:
 * their order says nothing.
 */
export function nearTies(scores: readonly number[], count: number, width: number): number[] {
  const sorted = [...scores].sort((a, b) => a - b);
  const [below, above] = [sorted[count - 1], sorted[count]];
  if (below === undefined || above === undefined || above - below > width) return [];
  const cut = (below + above) / 2;
  return scores.flatMap((score, i) => (Math.abs(score - cut) <= width ? i : []));
}

/**
 * Orders attentions by their score, tied ones by what their ablation costs, and equal ones by their
 * index; the first `count` become streaming.
 *
 * @param ablations of the tied attentions: the increase of the loss when that one alone streams.
 */
export function rank(
  scores: readonly number[],
  count: number,
  ablations: ReadonlyMap<number, number> = new Map(),
): Ranking {
  const score = (i: number) => scores[i] ?? 0;
  const ablation = (i: number) => ablations.get(i) ?? 0;
  const tied = [...ablations.keys()].sort((a, b) => a - b);
  const byScore = scores.map((_, i) => i).sort((a, b) => score(a) - score(b) || a - b);
  // Tied attentions keep the places that they have together.
  const places = byScore.flatMap((i, place) => (ablations.has(i) ? place : []));
  const byAblation = [...tied].sort((a, b) => ablation(a) - ablation(b) || a - b);
  const order = [...byScore];
  places.forEach((place, n) => (order[place] = byAblation[n] ?? 0));
  const streaming = new Set(order.slice(0, count));
  const [last, first] = [order[count - 1], order[count]];
  const hasCut = last !== undefined && first !== undefined;
  const decided = hasCut && ablations.has(last) && ablations.has(first);
  const sorted = byScore.map(score);
  return {
    order,
    layerType: scores.map((_, i) => (streaming.has(i) ? '1' : '0')).join(''),
    margin: hasCut ? (sorted[count] ?? 0) - (sorted[count - 1] ?? 0) : Infinity,
    tied,
    ablationMargin: decided ? ablation(first) - ablation(last) : undefined,
  };
}
