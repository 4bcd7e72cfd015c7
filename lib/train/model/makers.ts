import type { MlaConfig } from '../../checkpoint/mla-config';
import type { WeightSource } from '../../checkpoint/weights';
import { layerMakers, type LayerMakers } from '../../model/layer-parts';
import type { Tensor } from '../../native/tensor';
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
  const norm = (norm: Tensor) => new Norm(norm, config.rmsNormEps);
  const kinds = { norm, attention: Mla, experts: Experts, feedForward: FeedForward };
  return layerMakers(weights, config, softmaxFactor, kinds);
}
