import type { RopeConfig, YarnScaling } from '../checkpoint/rope-config';
import { LozaError, show } from '../errors';

/**
 * What the kernels need to rotate `dim` dimensions in interleaved pairs (2p, 2p + 1), p = 0..dim/2
 * - 1.
 */
export interface RopeTable {
  /** Radians a position, one for each pair. */
  readonly inverseFrequencies: Float64Array;
  /** Factor of cos and sin (YaRN's A). */
  readonly attentionScale: number;
  /** Factor of the softmax scale (YaRN's M squared). */
  readonly softmaxFactor: number;
  /**
   * Pairs up to `low` keep their frequency, pairs from `high` on are divided by the factor. Both
   * dim/2 without YaRN.
   */
  readonly low: number;
  readonly high: number;
}

/**
 * Rotary frequencies: f_p = theta^(-2p/dim), stretched by YaRN (arXiv 2309.00071) in the form that
 * DeepSeek, LongCat and Hugging Face transformers share:
 *
 *     inv_p = f_p/F * ramp_p + f_p * (1 - ramp_p),   ramp_p = clamp((p - low) / (high - low), 0, 1)
 *
 * It holds at every position, also in short prompts.
 *
 * @param dim rotated dimensions of a head, even.
 */
export function ropeTable(rope: RopeConfig, dim: number): RopeTable {
  const pairs = dim / 2;
  const inverseFrequencies = Float64Array.from({ length: pairs }, (_, pair) =>
    Math.pow(rope.theta, (-2 * pair) / dim),
  );
  const { scaling } = rope;
  if (scaling === null) {
    return { inverseFrequencies, attentionScale: 1, softmaxFactor: 1, low: pairs, high: pairs };
  }
  const [low, high] = rampBorders(rope.theta, scaling, dim);
  const stretched = inverseFrequencies.map((frequency, pair) => {
    const ramp = Math.min(Math.max((pair - low) / (high - low), 0), 1);
    return (frequency / scaling.factor) * ramp + frequency * (1 - ramp);
  });
  const { attentionScale, softmaxFactor } = yarnScales(scaling);
  return { inverseFrequencies: stretched, attentionScale, softmaxFactor, low, high };
}

/** The pairs that turn betaFast and betaSlow times over the original length. */
function rampBorders(theta: number, scaling: YarnScaling, dim: number): [number, number] {
  const pairOf = (turns: number): number =>
    (dim * Math.log(scaling.originalMaxPosition / (2 * Math.PI * turns))) / (2 * Math.log(theta));
  let low = pairOf(scaling.betaFast);
  let high = pairOf(scaling.betaSlow);
  if (scaling.truncate) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  low = Math.max(low, 0);
  // The reference clamps to dim - 1, although pairs end at dim/2 - 1.
  high = Math.min(high, dim - 1);
  return low === high ? [low, high + 0.001] : [low, high];
}

/** An mscale of 0 counts as absent, as in the reference. */
function yarnScales(scaling: YarnScaling): { attentionScale: number; softmaxFactor: number } {
  const { factor, mscale = 0, mscaleAllDim = 0, attentionFactor } = scaling;
  const magnitude = (weight: number): number =>
    factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1;
  const byMscales =
    mscale !== 0 && mscaleAllDim !== 0 ? magnitude(mscale) / magnitude(mscaleAllDim) : magnitude(1);
  return {
    attentionScale: attentionFactor ?? byMscales,
    softmaxFactor: mscaleAllDim === 0 ? 1 : magnitude(mscaleAllDim) ** 2,
  };
}

/** An extension stops at 2^20 positions, the longest context that LoZA was published for. */
const maxExtendedPosition = 2 ** 20;

/**
 * Stretches a model to more positions than its config says, by YaRN with the user's factor.
 *
 * A plain model gets L0 = its `maxPosition`, betas 32 and 1 and mscale = mscaleAllDim = 1: the
 * convention of DeepSeek and LongCat, which leaves cos and sin unscaled and puts M^2 into the
 * softmax, where it also reaches the dimensions that do not rotate. A model that has YaRN keeps
 * all its numbers but the factor, which counts from its original length.
 *
 * @param yarnFactor at least 1; positions become `round(L0 * yarnFactor)`, at most 2^20 unless the
 * model has more itself.
 * @throws LozaError ERR_LOZA_INVALID_ARG, also if the model would lose positions.
 */
export function extendRope(
  rope: RopeConfig,
  maxPosition: number,
  yarnFactor: number,
): { rope: RopeConfig; maxPosition: number } {
  if (!(typeof yarnFactor === 'number' && yarnFactor >= 1 && yarnFactor < Infinity)) {
    const problem = `rope.yarnFactor must be a finite number of at least 1, got ${show(yarnFactor)}`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', problem, { value: yarnFactor });
  }
  const base = rope.scaling ?? plainScaling(maxPosition);
  const cap = Math.max(maxExtendedPosition, maxPosition);
  const extended = Math.min(Math.round(base.originalMaxPosition * yarnFactor), cap);
  if (extended < maxPosition) {
    const lengths = `${base.originalMaxPosition} original positions * ${yarnFactor} = ${extended}`;
    const problem = `rope.yarnFactor must not shorten the model's ${maxPosition} positions`;
    throw new LozaError('ERR_LOZA_INVALID_ARG', `${problem}, got ${lengths}`, {
      value: yarnFactor,
      hint: `The factor counts from the original length: use at least ${maxPosition / base.originalMaxPosition}`,
    });
  }
  const scaling = { ...base, factor: yarnFactor };
  return { rope: { theta: rope.theta, scaling }, maxPosition: extended };
}

function plainScaling(maxPosition: number): YarnScaling {
  return {
    factor: 1,
    originalMaxPosition: maxPosition,
    betaFast: 32,
    betaSlow: 1,
    mscale: 1,
    mscaleAllDim: 1,
    truncate: true,
  };
}
