import type { WeightSource } from '../../checkpoint/weights';
import type { LongcatConfig } from '../../model/longcat-flash';
import type { Tensor } from '../../native/tensor';
import { Experts, type ExpertsRecord } from '../layers/experts';
import { FeedForward, type FeedForwardRecord } from '../layers/feed-forward';
import { Mla, type MlaRecord } from '../layers/mla';
import { Norm } from '../layers/norm';
import { copyOf, zeros, type Pass } from '../pass';
import type { TrainableLayer } from './trainable-model';

interface LongcatRecord {
  x: Tensor;
  a: Tensor;
  b: Tensor;
  c: Tensor;
  attentions: readonly [MlaRecord, MlaRecord];
  feedForwards: readonly [FeedForwardRecord, FeedForwardRecord];
  experts: ExpertsRecord;
}

/**
 * LongCat-Flash (model-spec section 1): two attentions and two feed-forwards; the experts branch off
 * after the first attention.
 *
 *     a = x + MLA_0(norm x);  n = norm a;  b = a + FFN_0(n)
 *     c = b + MLA_1(norm b);  y = c + FFN_1(norm c) + Experts(n)
 */
export class LongcatLayer implements TrainableLayer<LongcatRecord> {
  private readonly inputNorms: readonly [Norm, Norm];
  private readonly postNorms: readonly [Norm, Norm];
  private readonly attentions: readonly [Mla, Mla];
  private readonly feedForwards: readonly [FeedForward, FeedForward];
  private readonly experts: Experts;

  constructor(weights: WeightSource, config: LongcatConfig, layer: number, softmaxFactor: number) {
    const { mla, feedForwardWidth, experts, scales } = config;
    const { hiddenSize, rmsNormEps } = mla;
    const prefix = `model.layers.${layer}.`;
    const twice = <T>(make: (i: number) => T) => [make(0), make(1)] as const;
    const norm = (name: string) =>
      twice((i) => new Norm(weights, `${prefix}${name}.${i}.weight`, hiddenSize, rmsNormEps));
    this.inputNorms = norm('input_layernorm');
    this.postNorms = norm('post_attention_layernorm');
    this.attentions = twice(
      (i) =>
        new Mla(weights, `${prefix}self_attn.${i}.`, mla, 2 * layer + i, scales, softmaxFactor),
    );
    this.feedForwards = twice(
      (i) => new FeedForward(weights, `${prefix}mlps.${i}.`, hiddenSize, feedForwardWidth),
    );
    const router = {
      classifier: 'router.classifier.weight',
      bias: 'router.e_score_correction_bias',
    };
    this.experts = new Experts(weights, `${prefix}mlp.`, router, experts);
  }

  forward(pass: Pass, stream: Tensor): LongcatRecord {
    const { ops } = pass;
    const [x, mla0] = [copyOf(ops, stream), this.attend(0, pass, stream)];
    const a = copyOf(ops, stream);
    const n = this.postNorms[0].forward(ops, stream);
    const ffn0 = this.feedForwards[0].forward(pass, stream, n);
    const [b, mla1] = [copyOf(ops, stream), this.attend(1, pass, stream)];
    const c = copyOf(ops, stream);
    const h = this.postNorms[1].forward(ops, stream);
    const ffn1 = this.feedForwards[1].forward(pass, stream, h);
    const experts = this.experts.forward(pass, stream, n);
    return { x, a, b, c, attentions: [mla0, mla1], feedForwards: [ffn0, ffn1], experts };
  }

  backward(pass: Pass, record: LongcatRecord, d: Tensor): void {
    const { x, a, b, c, attentions, feedForwards, experts } = record;
    const dn = zeros(pass.ops, ...a.shape);
    this.experts.backward(pass, experts, d, dn);
    through(pass, this.postNorms[1], c, d, (dh) =>
      this.feedForwards[1].backward(pass, feedForwards[1], d, dh),
    );
    through(pass, this.inputNorms[1], b, d, (dh) =>
      this.attentions[1].backward(pass, attentions[1], d, dh),
    );
    this.feedForwards[0].backward(pass, feedForwards[0], d, dn);
    this.postNorms[0].backward(pass, d, dn, a, true);
    through(pass, this.inputNorms[0], x, d, (dh) =>
      this.attentions[0].backward(pass, attentions[0], d, dh),
    );
  }

  private attend(i: 0 | 1, pass: Pass, stream: Tensor): MlaRecord {
    return this.attentions[i].forward(pass, stream, this.inputNorms[i].forward(pass.ops, stream));
  }
}

/**
 * The gradient of x + f(norm x): `backward` adds that of f to dh, which goes back through the norm
 * and onto d.
 */
export function through(
  pass: Pass,
  norm: Norm,
  x: Tensor,
  d: Tensor,
  backward: (dh: Tensor) => void,
): void {
  pass.ops.arena.scope(() => {
    const dh = zeros(pass.ops, ...x.shape);
    backward(dh);
    norm.backward(pass, d, dh, x, true);
  });
}
