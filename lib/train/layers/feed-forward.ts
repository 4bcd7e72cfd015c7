import type { FeedForwardWeights } from '../../layers/feed-forward';
import type { Tensor } from '../../native/tensor';
import { addWeightGradients, type Pass } from '../pass';

export interface FeedForwardRecord {
  h: Tensor; // [rows, hidden]
  gateUp: Tensor; // [rows, 2 * width]
  inner: Tensor; // [rows, width]
}

/** SwiGLU: W_down ( silu(W_gate h) * (W_up h) ). */
export class FeedForward {
  constructor(private readonly taken: FeedForwardWeights) {}

  /** Adds the result to `residual`. */
  forward({ ops }: Pass, residual: Tensor, h: Tensor): FeedForwardRecord {
    const gateUp = ops.linears(h, this.taken.gateUp);
    const inner = ops.swiglu(gateUp);
    ops.addLinear(residual, inner, this.taken.down);
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
    const { taken } = this;
    const dy = ops.toActivation(dResidual);
    addWeightGradients(pass, [taken.down], dy, inner);
    const dGateUp = grads.swiglu(grads.linearInput(dy, taken.down), gateUp);
    addWeightGradients(pass, taken.gateUp, dGateUp, h);
    grads.addLinearsInput(dh, dGateUp, taken.gateUp);
  }
}
