import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import {
  Experts,
  takeExperts,
  type ExpertsShape,
  type ExpertsWeights,
  type RouterNames,
} from '../layers/experts';
import { FeedForward, takeFeedForward, type FeedForwardWeights } from '../layers/feed-forward';
import { Mla, takeMla, type MlaScales, type MlaWeights } from '../layers/mla';
import type { Tensor } from '../native/tensor';

/** What layers are made of: inference and training make parts of their own from the same weights. */
export interface LayerMakers<Norm, Attention, RoutedExperts, Dense> {
  /** RMSNorm over the hidden dimension. */
  norm(name: string): Norm;
  /** `index` counts attentions through the whole model. */
  attention(prefix: string, index: number, scales: MlaScales): Attention;
  experts(prefix: string, router: RouterNames, shape: ExpertsShape): RoutedExperts;
  feedForward(prefix: string, width: number): Dense;
}

/** The classes of parts, and what a norm is made of its weights. */
interface PartKinds<Norm, Attention, RoutedExperts, Dense> {
  norm: (weights: Tensor) => Norm;
  attention: new (
    weights: MlaWeights,
    config: MlaConfig,
    index: number,
    scales: MlaScales,
    softmaxFactor: number,
  ) => Attention;
  experts: new (weights: ExpertsWeights, shape: ExpertsShape) => RoutedExperts;
  feedForward: new (weights: FeedForwardWeights) => Dense;
}

/** Makers that take the weights of each part, and leave to `kinds` what becomes of them. */
export function layerMakers<N, A, E, F>(
  weights: WeightSource,
  config: MlaConfig,
  softmaxFactor: number,
  kinds: PartKinds<N, A, E, F>,
): LayerMakers<N, A, E, F> {
  const { hiddenSize } = config;
  return {
    norm: (name) => kinds.norm(weights.vector(name, hiddenSize)),
    attention: (prefix, index, scales) =>
      new kinds.attention(takeMla(weights, prefix, config), config, index, scales, softmaxFactor),
    experts: (prefix, router, shape) =>
      new kinds.experts(takeExperts(weights, prefix, router, shape), shape),
    feedForward: (prefix, width) =>
      new kinds.feedForward(takeFeedForward(weights, prefix, hiddenSize, width)),
  };
}

/** Norms are their weights: the operations that read them take nothing else. */
export function inferenceMakers(
  weights: WeightSource,
  config: MlaConfig,
  softmaxFactor: number,
): LayerMakers<Tensor, Mla, Experts, FeedForward> {
  const kinds = { attention: Mla, experts: Experts, feedForward: FeedForward };
  return layerMakers(weights, config, softmaxFactor, { norm: (norm: Tensor) => norm, ...kinds });
}
