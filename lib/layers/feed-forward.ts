import type { WeightSource } from '../checkpoint/weights';
import type { Joined, Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** SwiGLU: W_down ( silu(W_gate h) * (W_up h) ). */
export class FeedForward {
  private readonly gateUp: Joined;
  private readonly down: Weight;

  constructor(weights: WeightSource, prefix: string, hidden: number, width: number) {
    const inner = ['gate', 'up'].map((name) => ({
      name: `${prefix}${name}_proj.weight`,
      rows: width,
    }));
    this.gateUp = weights.joined(inner, hidden);
    this.down = weights.matrix(`${prefix}down_proj.weight`, hidden, width);
  }

  /** Adds the result to `residual`. h and residual: [rows, hidden]. */
  addTo(residual: Tensor, ops: Ops, h: Tensor): void {
    const inner = ops.swiglu(ops.linears(h, this.gateUp));
    ops.addLinear(residual, inner, this.down);
  }
}
