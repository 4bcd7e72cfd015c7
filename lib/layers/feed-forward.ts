import type { WeightSource } from '../checkpoint/weights';
import type { Joined, Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** The weights of a FeedForward, in inference and in training. */
export interface FeedForwardWeights {
  gateUp: Joined;
  down: Weight;
}

export function takeFeedForward(
  weights: WeightSource,
  prefix: string,
  hidden: number,
  width: number,
): FeedForwardWeights {
  const inner = ['gate', 'up'].map((name) => ({
    name: `${prefix}${name}_proj.weight`,
    rows: width,
  }));
  return {
    gateUp: weights.joined(inner, hidden),
    down: weights.matrix(`${prefix}down_proj.weight`, hidden, width),
  };
}

/** SwiGLU: W_down ( silu(W_gate h) * (W_up h) ). */
export class FeedForward {
  private readonly taken: FeedForwardWeights;

  constructor(weights: WeightSource, prefix: string, hidden: number, width: number) {
    this.taken = takeFeedForward(weights, prefix, hidden, width);
  }

  /** Adds the result to `residual`. h and residual: [rows, hidden]. */
  addTo(residual: Tensor, ops: Ops, h: Tensor): void {
    const inner = ops.swiglu(ops.linears(h, this.taken.gateUp));
    ops.addLinear(residual, inner, this.taken.down);
  }
}
