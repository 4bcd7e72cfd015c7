import { fullRange, type KeyRange } from '../../lib/native/ops';
import { visibleKeys, zigzag } from '../../lib/selftest/cases/key-range';

/** Ranges that attention is asked about, LoZA's and others. */
export const maskRanges: [string, KeyRange][] = [
  ['full', fullRange],
  ['1 sink, 7 locals', zigzag],
  ['no sinks, 1 local', { sinkBlocks: 0, localBlocks: 1 }],
  ['2 sinks, 3 locals', { sinkBlocks: 2, localBlocks: 3 }],
];

/** Positions of queries around the edges of blocks and of the window. */
export const maskPositions = [
  0, 1, 126, 127, 128, 129, 255, 256, 383, 384, 1023, 1024, 1100, 1151, 1152, 1279, 1280, 2500,
];

/** How many keys of each block a query at `t` sees, by the definition of the mask. */
export function seenPerBlock(range: KeyRange, t: number): number[] {
  const counts = new Array<number>(Math.floor(t / 128) + 1).fill(0);
  for (const key of visibleKeys(range, t)) counts[Math.floor(key / 128)]!++;
  return counts;
}
