import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import { Experts, takeExperts, type ExpertsShape, type RouterNames } from '../layers/experts';
import { FeedForward, takeFeedForward } from '../layers/feed-forward';
import { Mla, takeMla, type MlaScales } from '../layers/mla';
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

/** Norms are their weights: the operations that read them take nothing else. */
export function inferenceMakers(
  weights: WeightSource,
  config: MlaConfig,
  softmaxFactor: number,
): LayerMakers<Tensor, Mla, Experts, FeedForward> {
  const { hiddenSize } = config;
  return {
    norm: (name) => weights.vector(name, hiddenSize),
    attention: (prefix, index, scales) =>
      new Mla(takeMla(weights, prefix, config), config, index, scales, softmaxFactor),
    experts: (prefix, router, shape) =>
      new Experts(takeExperts(weights, prefix, router, shape), shape),
    feedForward: (prefix, width) =>
      new FeedForward(takeFeedForward(weights, prefix, hiddenSize, width)),
  };
}
