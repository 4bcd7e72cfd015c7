import type { MlaConfig } from '../../checkpoint/mla-config';
import type { WeightSource } from '../../checkpoint/weights';
import { takeExperts } from '../../layers/experts';
import { takeFeedForward } from '../../layers/feed-forward';
import { takeMla } from '../../layers/mla';
import type { LayerMakers } from '../../model/layer-parts';
import { Experts } from '../layers/experts';
import { FeedForward } from '../layers/feed-forward';
import { Mla } from '../layers/mla';
import { Norm } from '../layers/norm';

/** Parts that know their gradient. */
export function trainableMakers(
  weights: WeightSource,
  config: MlaConfig,
  softmaxFactor: number,
): LayerMakers<Norm, Mla, Experts, FeedForward> {
  const { hiddenSize, rmsNormEps } = config;
  return {
    norm: (name) => new Norm(weights.vector(name, hiddenSize), rmsNormEps),
    attention: (prefix, index, scales) =>
      new Mla(takeMla(weights, prefix, config), config, index, scales, softmaxFactor),
    experts: (prefix, router, shape) =>
      new Experts(takeExperts(weights, prefix, router, shape), shape),
    feedForward: (prefix, width) =>
      new FeedForward(takeFeedForward(weights, prefix, hiddenSize, width)),
  };
}
