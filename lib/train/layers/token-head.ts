import type { MlaConfig } from '../../checkpoint/mla-config';
import type { WeightSource } from '../../checkpoint/weights';
import { takeTokenHead } from '../../model/token-head';
import type { Weight } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import type { Pass } from '../pass';
import { Norm } from './norm';

/** Both ends of a language model: token embedding, final norm and lm_head. */
export class TokenHead {
  readonly projection: Weight;
  private readonly embedding: Tensor;
  private readonly norm: Norm;

  constructor(weights: WeightSource, config: MlaConfig) {
    const { embedding, norm, projection } = takeTokenHead(weights, config);
    this.embedding = embedding;
    this.norm = new Norm(norm, config.rmsNormEps);
    this.projection = projection;
  }

  /** Of a hidden state. */
  get width(): number {
    return this.norm.width;
  }

  /** The residual stream at its beginning, f32 [rows, hidden]. */
  embed({ ops, tokens }: Pass): Tensor {
    return ops.gatherFloatRows(this.embedding, tokens);
  }

  /** `dx` is the gradient of what `embed` gave. */
  embedBackward(pass: Pass, dx: Tensor): void {
    const table = pass.gradientOf(this.embedding);
    if (table !== undefined) pass.grads.addGatherRows(table, dx, pass.tokens);
  }

  /** Final hidden states of some rows: `x` and the result are [rows, hidden]. */
  finish({ ops }: Pass, x: Tensor): Tensor {
    return this.norm.forward(ops, x);
  }

  finishBackward(pass: Pass, dx: Tensor, dy: Tensor, x: Tensor): void {
    this.norm.backward(pass, dx, dy, x);
  }
}
