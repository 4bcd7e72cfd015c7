/** A learning rate never falls below this share of its peak. */
const floor = 0.1;

/**
 * The learning rate of a step (counted from 0): it rises over the first fifth of the steps, stays,
 * and falls over the last fifth, in straight lines, as in DuoAttention's recipe.
 */
export function learningRate(step: number, steps: number, peak: number): number {
  const fifth = steps / 5;
  const rising = (step + 1) / Math.max(fifth, 1);
  const falling = (steps - step) / Math.max(fifth, 1);
  return peak * Math.max(floor, Math.min(1, rising, falling));
}
