import type { WeightSource } from '../../checkpoint/weights';
import type { Joined, Weight } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import { addWeightGradients, type Pass } from '../pass';

export interface FeedForwardRecord {
  h: Tensor; // [rows, hidden]
  gateUp: Tensor; // [rows, 2 * width]
  inner: Tensor; // [rows, width]
}

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

  /** Adds the result to `residual`. */
  forward({ ops }: Pass, residual: Tensor, h: Tensor): FeedForwardRecord {
    const gateUp = ops.linears(h, this.gateUp);
    const inner = ops.swiglu(gateUp);
    ops.addLinear(residual, inner, this.down);
    return { h, gateUp, inner };
  }

  /** Adds the gradient of h to dh, f32. */
  backward(
    pass: Pass,
    { h, gateUp, inner }: FeedForwardRecord,
    dResidual: Tensor,
    dh: Tensor,
  ): void {
    const { grads, ops } = pass;
    const dy = ops.toActivation(dResidual);
    addWeightGradients(pass, [this.down], dy, inner);
    const dGateUp = grads.swiglu(grads.linearInput(dy, this.down), gateUp);
    addWeightGradients(pass, this.gateUp, dGateUp, h);
    grads.addLinearsInput(dh, dGateUp, this.gateUp);
  }
}
