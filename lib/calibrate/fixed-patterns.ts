import { Random } from '../selftest/random';

/**
 * A pattern with streaming attentions at equal distances, whatever they do: what LoZA is compared
 * with. 'odd' makes attentions 1, 3, 5, ... streaming at half the attentions, 'even' 0, 2, 4, ...
 */
export function interleaved(attentions: number, count: number, parity: 'even' | 'odd'): string {
  const round = parity === 'odd' ? Math.floor : Math.ceil;
  const before = (i: number) => round((i * count) / attentions);
  return Array.from({ length: attentions }, (_, i) => (before(i + 1) > before(i) ? '1' : '0')).join(
    '',
  );
}

/** A pattern that the seed alone decides. */
export function randomPattern(attentions: number, count: number, seed: number): string {
  const chosen = new Set(new Random(`pattern ${seed}`).permutation(attentions).slice(0, count));
  return Array.from({ length: attentions }, (_, i) => (chosen.has(i) ? '1' : '0')).join('');
}
