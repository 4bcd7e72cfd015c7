import { LozaError, show } from '../errors';
import { configCaps, type Config } from './config';

/** Which attentions stream, and what they keep (LongCat ZigZag Attention). */
export interface AttentionPattern {
  /** One character an attention, in the order of the layers: '1' = streaming sparse, '0' = full. */
  readonly layerType: string;
  /** Blocks of 128 tokens kept at the start of the sequence. */
  readonly sinkBlocks: number;
  /** Blocks kept at the end, with the block being filled. */
  readonly localBlocks: number;
}

/**
 * The user's choice: what the checkpoint says, full attention everywhere, or a pattern of their
 * own.
 */
export type AttentionOption =
  | 'auto'
  | 'full'
  | {
      readonly layerType: string;
      readonly sinkBlocks?: number | undefined;
      readonly localBlocks?: number | undefined;
    };

/**
 * Tokens of a block, fixed by the format: the sizes in the config are rounded up to whole blocks.
 */
export const attentionBlock = 128;

/** The paper's pattern: 1 sink and 7 local blocks, 1,024 tokens. */
const paperPattern = { sinkBlocks: 1, localBlocks: 7 } as const;
const maxBlocks = configCaps.positions / attentionBlock;

/**
 * Reads the object `streaming_sparse_attention` of a model with `attentionCount` attentions;
 * undefined if there is none. Which attentions stream comes from calibration, so nothing about it
 * is defaulted.
 *
 * @throws LozaError ERR_LOZA_CONFIG; ERR_LOZA_UNSUPPORTED for the older form that streams single
 * heads.
 */
export function readAttentionPattern(
  streaming: Config | undefined,
  attentionCount: number,
): AttentionPattern | undefined {
  if (streaming === undefined) return undefined;
  if (streaming.has('head_score') && !streaming.has('layer_type')) {
    const both = `${streaming.path('head_score')} without layer_type`;
    throw streaming.unsupported(`${both} chooses single heads; only whole layers can stream`);
  }
  const layerType = streaming.string('layer_type');
  if (!fits(layerType, attentionCount)) {
    const rule = `${streaming.path('layer_type')} must be ${expectedType(attentionCount)}`;
    throw streaming.problem(`${rule}, got ${describeType(layerType)}`, layerType);
  }
  streaming.number('sparsity', { min: 0, max: 1, default: undefined });
  const sizes = { max: configCaps.positions };
  return {
    layerType,
    sinkBlocks: Math.ceil(streaming.int('sink_size', sizes) / attentionBlock),
    localBlocks: Math.ceil(streaming.int('recent_size', sizes) / attentionBlock),
  };
}

/**
 * The pattern to run with, or undefined for full attention everywhere. Block counts that the
 * option leaves out are the config's, else the paper's 1 and 7.
 *
 * @throws LozaError ERR_LOZA_INVALID_ARG if the option is wrong.
 */
export function resolveAttentionPattern(
  option: AttentionOption,
  fromConfig: AttentionPattern | undefined,
  attentionCount: number,
): AttentionPattern | undefined {
  if (option === 'full') return undefined;
  const pattern =
    option === 'auto'
      ? fromConfig
      : userPattern(option, fromConfig ?? paperPattern, attentionCount);
  return pattern?.layerType.includes('1') ? pattern : undefined;
}

function userPattern(
  option: unknown,
  defaults: { sinkBlocks: number; localBlocks: number },
  attentionCount: number,
): AttentionPattern {
  if (typeof option !== 'object' || option === null || !('layerType' in option)) {
    throw invalid('attention', '"auto", "full" or an object with layerType', option);
  }
  for (const key of Object.keys(option)) {
    if (key === 'layerType' || key === 'sinkBlocks' || key === 'localBlocks') continue;
    throw invalid('attention', 'an object of layerType, sinkBlocks and localBlocks', key);
  }
  const { layerType } = option;
  if (typeof layerType !== 'string' || !fits(layerType, attentionCount)) {
    const got = typeof layerType === 'string' ? describeType(layerType) : show(layerType);
    const problem = `attention.layerType must be ${expectedType(attentionCount)}, got ${got}`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: layerType });
  }
  const { sinkBlocks, localBlocks } = option as { sinkBlocks?: unknown; localBlocks?: unknown };
  return {
    layerType,
    sinkBlocks: blockCount('attention.sinkBlocks', sinkBlocks ?? defaults.sinkBlocks),
    localBlocks: blockCount('attention.localBlocks', localBlocks ?? defaults.localBlocks),
  };
}

function blockCount(name: string, value: unknown): number {
  if (Number.isInteger(value) && Number(value) >= 1 && Number(value) <= maxBlocks) {
    return Number(value);
  }
  throw invalid(name, `an integer of 1..${maxBlocks}`, value);
}

function fits(layerType: string, attentionCount: number): boolean {
  return layerType.length === attentionCount && /^[01]*$/.test(layerType);
}

function expectedType(attentionCount: number): string {
  return `${attentionCount} characters 0 or 1, one for each attention`;
}

function describeType(layerType: string): string {
  return `${layerType.length} characters: ${show(layerType)}`;
}

function invalid(name: string, expected: string, value: unknown): LozaError {
  const problem = `${name} must be ${expected}, got ${show(value)}`;
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, { value });
}
