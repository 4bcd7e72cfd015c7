import type { LongcatParts } from '../../model/longcat-flash';
import type { Tensor } from '../../native/tensor';
import type { Experts, ExpertsRecord } from '../layers/experts';
import type { FeedForward, FeedForwardRecord } from '../layers/feed-forward';
import type { Mla, MlaRecord } from '../layers/mla';
import type { Norm } from '../layers/norm';
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
  constructor(private readonly parts: LongcatParts<Norm, Mla, Experts, FeedForward>) {}

  forward(pass: Pass, stream: Tensor): LongcatRecord {
    const { ops } = pass;
    const { postNorms, feedForwards, ...parts } = this.parts;
    const [x, mla0] = [copyOf(ops, stream), this.attend(0, pass, stream)];
    const a = copyOf(ops, stream);
    const n = postNorms[0].forward(ops, stream);
    const ffn0 = feedForwards[0].forward(pass, stream, n);
    const [b, mla1] = [copyOf(ops, stream), this.attend(1, pass, stream)];
    const c = copyOf(ops, stream);
    const h = postNorms[1].forward(ops, stream);
    const ffn1 = feedForwards[1].forward(pass, stream, h);
    const experts = parts.experts.forward(pass, stream, n);
    return { x, a, b, c, attentions: [mla0, mla1], feedForwards: [ffn0, ffn1], experts };
  }

  backward(pass: Pass, record: LongcatRecord, d: Tensor): void {
    const { x, a, b, c, attentions, feedForwards, experts } = record;
    const { parts } = this;
    const dn = zeros(pass.ops, ...a.shape);
    parts.experts.backward(pass, experts, d, dn);
    through(pass, parts.postNorms[1], c, d, (dh) =>
      parts.feedForwards[1].backward(pass, feedForwards[1], d, dh),
    );
    through(pass, parts.inputNorms[1], b, d, (dh) =>
      parts.attentions[1].backward(pass, attentions[1], d, dh),
    );
    parts.feedForwards[0].backward(pass, feedForwards[0], d, dn);
    parts.postNorms[0].backward(pass, d, dn, a, true);
    through(pass, parts.inputNorms[0], x, d, (dh) =>
      parts.attentions[0].backward(pass, attentions[0], d, dh),
    );
  }

  private attend(i: 0 | 1, pass: Pass, stream: Tensor): MlaRecord {
    const { attentions, inputNorms } = this.parts;
    return attentions[i].forward(pass, stream, inputNorms[i].forward(pass.ops, stream));
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
