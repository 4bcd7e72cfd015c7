import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import type { Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** Both ends of a language model: token embedding, final norm and lm_head. */
export class TokenHead {
  private readonly embedding: Tensor;
  private readonly norm: Tensor;
  private readonly projection: Weight;

  constructor(
    weights: WeightSource,
    private readonly config: MlaConfig,
  ) {
    const { vocabSize, hiddenSize, tieWordEmbeddings } = config;
    this.embedding = weights.plainMatrix('model.embed_tokens.weight', vocabSize, hiddenSize);
    this.norm = weights.vector('model.norm.weight', hiddenSize);
    this.projection = tieWordEmbeddings
      ? { tensor: this.embedding }
      : weights.matrix('lm_head.weight', vocabSize, hiddenSize);
  }

  /** [rows] token ids to [rows, hidden]. */
  embed(ops: Ops, tokens: Tensor): Tensor {
    return ops.gatherFloatRows(this.embedding, tokens);
  }

  /** [rows, hidden] to f32 [rows, vocabulary]. */
  logits(ops: Ops, hidden: Tensor): Tensor {
    const normed = ops.rmsNorm(hidden, this.norm, this.config.rmsNormEps);
    return ops.linearFloat(normed, this.projection);
  }
}
