import { isDeepStrictEqual } from 'node:util';

import { configCaps, type Config } from './config';

/** Rotary position embedding of a model. */
export interface RopeConfig {
  /** The base of the frequencies. */
  readonly theta: number;
  /** YaRN, or null for plain rotations. */
  readonly scaling: YarnScaling | null;
}

/** YaRN's numbers; `lib/layers/rope.ts` holds the formulas. */
export interface YarnScaling {
  /** How far positions are stretched, at least 1. */
  readonly factor: number;
  /** Positions the model was trained on before it was stretched. */
  readonly originalMaxPosition: number;
  /** Rotations over `originalMaxPosition` above which a pair keeps its frequency. */
  readonly betaFast: number;
  /** Rotations below which a pair is divided by `factor`. */
  readonly betaSlow: number;
  readonly mscale?: number | undefined;
  readonly mscaleAllDim?: number | undefined;
  /** Replaces the scale of cos and sin that follows from `factor` and the mscales. */
  readonly attentionFactor?: number | undefined;
  /** Whether the border pairs are rounded outwards to whole pairs. */
  readonly truncate: boolean;
}

const scalingKeys = ['rope_scaling', 'rope_parameters'] as const;

/**
 * Reads `rope_scaling` or `rope_parameters` (older and newer spelling) and `rope_theta`, which may
 * stand beside or inside them. YaRN's factor and original length are never defaulted: relatives of
 * one model use different ones.
 *
 * @throws LozaError ERR_LOZA_CONFIG, or ERR_LOZA_UNSUPPORTED for other kinds of scaling.
 */
export function readRopeConfig(config: Config, maxPosition: number): RopeConfig {
  if (!config.boolean('rope_interleave', { default: true })) {
    throw config.unsupported('rope_interleave must be true or absent, got false', false);
  }
  const sections = scalingKeys.flatMap((key) => config.object(key) ?? []);
  const theta = readTheta(config, sections);
  const [scaling = null, other = scaling] = sections.map((one) => readScaling(one, maxPosition));
  if (!isDeepStrictEqual(scaling, other)) {
    throw config.problem(`${scalingKeys.join(' and ')} mean the same and must agree`);
  }
  return { theta, scaling };
}

function readTheta(config: Config, sections: readonly Config[]): number {
  // A base of at most 1 would make the frequencies rise and YaRN divide by zero.
  const range = { exclusiveMin: 1 };
  const holders = [config, ...sections].filter((holder) => holder.has('rope_theta'));
  const [theta, ...others] = holders.map((holder) => holder.number('rope_theta', range));
  if (theta === undefined) return config.number('rope_theta', range);
  if (others.some((other) => other !== theta)) {
    const places = holders.map((holder) => holder.path('rope_theta')).join(' and ');
    throw config.problem(`${places} must agree, got ${[theta, ...others].join(' and ')}`, theta);
  }
  return theta;
}

function readScaling(section: Config, maxPosition: number): YarnScaling | null {
  const type = section.string(['rope_type', 'type'], { default: 'default' });
  if (type === 'default') return null;
  if (type !== 'yarn' && type !== 'deepseek_yarn') {
    const key = section.path(section.has('rope_type') ? 'rope_type' : 'type');
    throw section.unsupported(
      `${key} must be "default", "yarn" or "deepseek_yarn", got ${JSON.stringify(type)}`,
      type,
    );
  }
  const originalMaxPosition = section.int('original_max_position_embeddings', {
    max: configCaps.positions,
  });
  const positive = { exclusiveMin: 0 };
  const betaFast = section.number('beta_fast', { ...positive, default: 32 });
  const betaSlow = section.number('beta_slow', { ...positive, default: 1 });
  if (betaFast < betaSlow) {
    const rule = `${section.path('beta_fast')} must be at least beta_slow`;
    throw section.problem(`${rule}, got ${betaFast} and ${betaSlow}`, betaFast);
  }
  return {
    factor: readFactor(section, maxPosition / originalMaxPosition),
    originalMaxPosition,
    betaFast,
    betaSlow,
    mscale: section.number('mscale', { min: 0, default: undefined }),
    mscaleAllDim: section.number('mscale_all_dim', { min: 0, default: undefined }),
    attentionFactor: section.number('attention_factor', { ...positive, default: undefined }),
    truncate: section.boolean('truncate', { default: true }),
  };
}

/**
 * The factor, or what the lengths imply where it is absent (the rule of Hugging Face
 * transformers).
 */
function readFactor(section: Config, implied: number): number {
  const factor = section.number('factor', { min: 1, default: implied });
  if (factor >= 1) return factor;
  const rule = `max_position_embeddings / ${section.path('original_max_position_embeddings')}`;
  throw section.problem(`${rule} must be at least 1 where factor is absent, got ${factor}`, factor);
}
