import type { AttentionOption, AttentionPattern } from '../checkpoint/streaming-config';
import { LozaError } from '../errors';
import type { LoadPlan } from '../load-model';

/** Blocks that streaming attentions keep, where they are not the pattern's. */
export interface Blocks {
  sinkBlocks?: number;
  localBlocks?: number;
}

type Planned = Pick<LoadPlan, 'pattern' | 'model' | 'checkpoint'>;

/**
 * Which attentions stream in one arm of a comparison. 'full': none. 'loza': as the config says, and
 * every other one where it says nothing; real weights are not streamed unasked. Digits: a pattern.
 */
export function armAttention(arm: string, plan: Planned, blocks: Blocks = {}): AttentionOption {
  if (arm === 'full') return arm;
  if (arm !== 'loza' && arm !== 'auto') return { layerType: arm, ...blocks };
  const { pattern, model, checkpoint } = plan;
  if (pattern !== undefined) return { layerType: pattern.layerType, ...kept(pattern), ...blocks };
  if (arm === 'auto') return arm;
  if (checkpoint.files.length === 0) return { layerType: everyOther(model.attentions), ...blocks };
  const hint = 'Name the streaming ones by digits, as --attention full,1010: 1 streams, 0 is full';
  const problem = 'the checkpoint does not say which attentions stream';
  throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: arm, hint });
}

const kept = ({ sinkBlocks, localBlocks }: AttentionPattern) => ({ sinkBlocks, localBlocks });

/** '1010...': half of the attentions stream. */
export const everyOther = (attentions: number): string =>
  Array.from({ length: attentions }, (_, i) => (i % 2 === 0 ? '1' : '0')).join('');

/** Part of the routed slots that real experts get, in expectation. */
export function realExpertShare({ model }: Pick<LoadPlan, 'model'>): number {
  const { experts, zeroExperts } = model;
  return experts === 0 ? 1 : experts / (experts + zeroExperts);
}
