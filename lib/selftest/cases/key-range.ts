import type { KeyRange } from '../../native/ops';

export const blockTokens = 128;
export const zigzag: KeyRange = { sinkBlocks: 1, localBlocks: 7 };

/**
 * LoZA's mask by its words: the keys up to `t` in the first `sinkBlocks` blocks and in the last
 * `localBlocks` blocks, the current one included. Written apart from native/ops/attention/key_range.h.
 */
export function visibleKeys(range: KeyRange, t: number): number[] {
  const current = Math.floor(t / blockTokens);
  const blocks = new Set<number>();
  for (let block = 0; block <= current; block++) {
    const isSink = block < range.sinkBlocks;
    const isLocal = current - block < range.localBlocks;
    if (isSink || isLocal) blocks.add(block);
  }
  const keys: number[] = [];
  for (let j = 0; j <= t; j++) if (blocks.has(Math.floor(j / blockTokens))) keys.push(j);
  return keys;
}

/** First local block of the short table for a query at `t`. */
export function firstLocalBlock(range: KeyRange, t: number): number {
  return Math.max(range.sinkBlocks, Math.floor(t / blockTokens) - range.localBlocks + 1);
}

/** softmax of the scores, and their log-sum-exp. */
export function softmaxOf(scores: readonly number[]): { weights: number[]; lse: number } {
  const largest = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const total = scores.reduce((sum, score) => sum + Math.exp(score - largest), 0);
  const lse = largest + Math.log(total);
  return { weights: scores.map((score) => Math.exp(score - lse)), lse };
}
