import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import type { Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** The embedding is [vocabulary, hidden], and so is the projection, which may be the same. */
export interface TokenHeadWeights {
  embedding: Tensor;
  norm: Tensor;
  projection: Weight;
}

export function takeTokenHead(weights: WeightSource, config: MlaConfig): TokenHeadWeights {
  const { vocabSize, hiddenSize, tieWordEmbeddings } = config;
  const embedding = weights.plainMatrix('model.embed_tokens.weight', vocabSize, hiddenSize);
  const norm = weights.vector('model.norm.weight', hiddenSize);
  const projection = tieWordEmbeddings
    ? { tensor: embedding }
    : weights.matrix('lm_head.weight', vocabSize, hiddenSize);
  return { embedding, norm, projection };
}

/** Both ends of a language model: token embedding, final norm and lm_head. */
export class TokenHead {
  private readonly taken: TokenHeadWeights;

  constructor(
    weights: WeightSource,
    private readonly config: MlaConfig,
  ) {
    this.taken = takeTokenHead(weights, config);
  }

  /** [rows] token ids to [rows, hidden]. */
  embed(ops: Ops, tokens: Tensor): Tensor {
    return ops.gatherFloatRows(this.taken.embedding, tokens);
  }

  /** [rows, hidden] to f32 [rows, vocabulary]. */
  logits(ops: Ops, hidden: Tensor): Tensor {
    const normed = ops.rmsNorm(hidden, this.taken.norm, this.config.rmsNormEps);
    return ops.linearFloat(normed, this.taken.projection);
  }
}
