import type { DeepseekParts } from '../../model/deepseek';
import type { Tensor } from '../../native/tensor';
import type { Experts, ExpertsRecord } from '../layers/experts';
import type { FeedForward, FeedForwardRecord } from '../layers/feed-forward';
import type { Mla, MlaRecord } from '../layers/mla';
import type { Norm } from '../layers/norm';
import { copyOf, type Pass } from '../pass';
import { through } from './longcat-layer';
import type { TrainableLayer } from './trainable-model';

interface DeepseekRecord {
  x: Tensor;
  a: Tensor;
  attention: MlaRecord;
  experts: ExpertsRecord | undefined;
  feedForward: FeedForwardRecord | undefined;
}

/**
 * DeepSeek V2 and V3, and what is built like them (model-spec section 4):
 *
 *     a = x + MLA(norm x);  y = a + MLP(norm a)
 *
 * where the MLP is a dense feed-forward, or routed experts with shared ones beside them.
 */
export class DeepseekLayer implements TrainableLayer<DeepseekRecord> {
  constructor(private readonly parts: DeepseekParts<Norm, Mla, Experts, FeedForward>) {}

  forward(pass: Pass, stream: Tensor): DeepseekRecord {
    const { ops } = pass;
    const { inputNorm, postNorm, ...parts } = this.parts;
    const x = copyOf(ops, stream);
    const attention = parts.attention.forward(pass, stream, inputNorm.forward(ops, stream));
    const a = copyOf(ops, stream);
    const h = postNorm.forward(ops, stream);
    const experts = parts.experts?.forward(pass, stream, h);
    const feedForward = parts.feedForward?.forward(pass, stream, h);
    return { x, a, attention, experts, feedForward };
  }

  backward(pass: Pass, record: DeepseekRecord, d: Tensor): void {
    const { x, a, attention, experts, feedForward } = record;
    const { parts } = this;
    through(pass, parts.postNorm, a, d, (dh) => {
      if (experts !== undefined) parts.experts?.backward(pass, experts, d, dh);
      if (feedForward !== undefined) parts.feedForward?.backward(pass, feedForward, d, dh);
    });
    through(pass, parts.inputNorm, x, d, (dh) => parts.attention.backward(pass, attention, d, dh));
  }
}
