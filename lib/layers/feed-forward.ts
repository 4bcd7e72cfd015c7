import type { WeightSource } from '../checkpoint/weights';
import type { Joined, Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** `gateUp` are the gate and the up projection, [width, hidden] each. */
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
  constructor(private readonly taken: FeedForwardWeights) {}

  /** Adds the result to `residual`. h and residual: [rows, hidden]. */
  addTo(residual: Tensor, ops: Ops, h: Tensor): void {
    const inner = ops.swiglu(ops.linears(h, this.taken.gateUp));
    ops.addLinear(residual, inner, this.taken.down);
  }
}
