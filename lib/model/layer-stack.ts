import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import type { Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Step } from '../runner/step';
import type { Model } from './model';
import { TokenHead } from './token-head';

/** A layer changes the residual stream x [rows, hidden] in place. */
export interface Layer {
  addTo(x: Tensor, step: Step): void;
}

/** Embedding, layers one after the other, final norm and lm_head: every family's outer shape. */
export class LayerStack implements Model {
  private readonly head: TokenHead;
  private readonly layers: Layer[];
  private readonly heads: number;

  constructor(
    weights: WeightSource,
    config: MlaConfig,
    count: number,
    makeLayer: (index: number) => Layer,
  ) {
    this.head = new TokenHead(weights, config);
    this.heads = config.heads;
    this.layers = Array.from({ length: count }, (_, index) => makeLayer(index));
  }

  forward(step: Step): Tensor {
    step.planAttention(this.heads);
    const x = this.head.embed(step.ops, step.tokens);
    for (const layer of this.layers) layer.addTo(x, step);
    return x;
  }

  logits(ops: Ops, hidden: Tensor): Tensor {
    return this.head.logits(ops, hidden);
  }
}
