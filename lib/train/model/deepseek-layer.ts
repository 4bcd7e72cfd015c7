import type { WeightSource } from '../../checkpoint/weights';
import type { DeepseekConfig } from '../../model/deepseek';
import type { Tensor } from '../../native/tensor';
import { Experts, type ExpertsRecord } from '../layers/experts';
import { FeedForward, type FeedForwardRecord } from '../layers/feed-forward';
import { Mla, type MlaRecord } from '../layers/mla';
import { Norm } from '../layers/norm';
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
  private readonly inputNorm: Norm;
  private readonly postNorm: Norm;
  private readonly attention: Mla;
  private readonly experts: Experts | undefined;
  private readonly feedForward: FeedForward | undefined;

  constructor(weights: WeightSource, config: DeepseekConfig, layer: number, softmaxFactor: number) {
    const { mla, moe } = config;
    const { hiddenSize, rmsNormEps } = mla;
    const prefix = `model.layers.${layer}.`;
    const mlp = `${prefix}mlp.`;
    const norm = (name: string) =>
      new Norm(weights, `${prefix}${name}.weight`, hiddenSize, rmsNormEps);
    this.inputNorm = norm('input_layernorm');
    this.postNorm = norm('post_attention_layernorm');
    const scales = { query: 1, latent: 1 };
    this.attention = new Mla(weights, `${prefix}self_attn.`, mla, layer, scales, softmaxFactor);
    if (moe?.sparse[layer] !== true) {
      this.feedForward = new FeedForward(weights, mlp, hiddenSize, config.denseWidth);
      return;
    }
    const bias = moe.correctionBias ? 'gate.e_score_correction_bias' : undefined;
    this.experts = new Experts(weights, mlp, { classifier: 'gate.weight', bias }, moe.experts);
    if (moe.sharedWidth > 0) {
      const shared = `${mlp}shared_experts.`;
      this.feedForward = new FeedForward(weights, shared, hiddenSize, moe.sharedWidth);
    }
  }

  forward(pass: Pass, stream: Tensor): DeepseekRecord {
    const { ops } = pass;
    const x = copyOf(ops, stream);
    const attention = this.attention.forward(pass, stream, this.inputNorm.forward(ops, stream));
    const a = copyOf(ops, stream);
    const h = this.postNorm.forward(ops, stream);
    const experts = this.experts?.forward(pass, stream, h);
    const feedForward = this.feedForward?.forward(pass, stream, h);
    return { x, a, attention, experts, feedForward };
  }

  backward(pass: Pass, record: DeepseekRecord, d: Tensor): void {
    const { x, a, attention, experts, feedForward } = record;
    through(pass, this.postNorm, a, d, (dh) => {
      if (experts !== undefined) this.experts?.backward(pass, experts, d, dh);
      if (feedForward !== undefined) this.feedForward?.backward(pass, feedForward, d, dh);
    });
    through(pass, this.inputNorm, x, d, (dh) => this.attention.backward(pass, attention, d, dh));
  }
}
