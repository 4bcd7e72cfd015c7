import type { WeightSource } from '../checkpoint/weights';
import type { Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** SwiGLU: W_down ( silu(W_gate h) * (W_up h) ). */
export class FeedForward {
  private readonly gate: Weight;
  private readonly up: Weight;
  private readonly down: Weight;

  constructor(weights: WeightSource, prefix: string, hidden: number, width: number) {
    this.gate = weights.matrix(`${prefix}gate_proj.weight`, width, hidden);
    this.up = weights.matrix(`${prefix}up_proj.weight`, width, hidden);
    this.down = weights.matrix(`${prefix}down_proj.weight`, hidden, width);
  }

  /** Adds the result to `residual`. h and residual: [rows, hidden]. */
  addTo(residual: Tensor, ops: Ops, h: Tensor): void {
    const inner = ops.swiglu(ops.linear(h, this.gate), ops.linear(h, this.up));
    ops.addLinear(residual, inner, this.down);
  }
}
