import { Sequence } from '../engine/sequence';
import { blockTokens, type LayerGroup } from '../kv/layer-group';
import type { SamplingRow } from '../runner/sampling-row';

export const greedy: SamplingRow = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
  ...{ seed: 0, counter: 0, alternatives: 0 },
};

export interface Seating {
  batch: number;
  /** Tokens whose cache rows are taken as they lie there. */
  depth: number;
  /** What follows in each sequence: different tokens go to different experts. */
  tokens: (index: number) => readonly number[];
}

/** Sequences that have `depth` tokens in the cache without having computed them. */
export function seat(groups: readonly LayerGroup[], seating: Seating): Sequence[] {
  const { batch, depth, tokens } = seating;
  const filler = new Array<number>(depth).fill(0);
  const sequences: Sequence[] = [];
  try {
    for (let i = 0; i < batch; i++) {
      const sequence = new Sequence(filler.concat(tokens(i)), groups);
      sequences.push(sequence);
      // Block by block, so that streaming attentions never hold more than their window.
      for (let at = 0; at < depth; at += blockTokens) {
        const count = Math.min(blockTokens, depth - at);
        sequence.extend(count);
        sequence.advance(count);
      }
    }
    return sequences;
  } catch (error) {
    for (const sequence of sequences) sequence.release();
    throw error;
  }
}
