import { armAttention, everyOther } from '../bench/arms';
import type { AttentionOption, AttentionPattern } from '../checkpoint/streaming-config';
import type { LoadPlan } from '../load-model';

/** What an arm of a comparison may be called, besides digits. */
export const armNames = ['full', 'loza', 'auto', 'even', 'odd', 'streaming'] as const;

/**
 * Which attentions stream in an arm: full (none), loza or auto (as the config says), even or odd
 * (interleaved: the first, third, ... or the others), streaming (all), or a digit for each.
 */
export function evalAttention(arm: string, plan: LoadPlan): AttentionOption {
  const { attentions } = plan.model;
  const even = everyOther(attentions);
  if (arm === 'even') return armAttention(even, plan);
  if (arm === 'odd')
    return armAttention([...even].map((c) => (c === '1' ? '0' : '1')).join(''), plan);
  if (arm === 'streaming') return armAttention('1'.repeat(attentions), plan);
  return armAttention(arm, plan);
}

/**
 * Whether a streaming attention at position `at` sees position `place`: then finding what stands there
 * tells nothing about the others.
 */
export function inWindow(
  place: number,
  at: number,
  { sinkBlocks, localBlocks }: Pick<AttentionPattern, 'sinkBlocks' | 'localBlocks'>,
): boolean {
  const [block, own] = [Math.floor(place / 128), Math.floor(at / 128)];
  return block < sinkBlocks || block > own - localBlocks;
}
