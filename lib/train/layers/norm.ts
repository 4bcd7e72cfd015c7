import type { Ops } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import type { Pass } from '../pass';

/** RMSNorm: scale * w * x / rms(x). */
export class Norm {
  constructor(
    private readonly weight: Tensor,
    private readonly eps: number,
    private readonly scale = 1,
  ) {}

  get width(): number {
    return this.weight.dim(0);
  }

  forward(ops: Ops, x: Tensor): Tensor {
    return ops.rmsNorm(x, this.weight, this.eps, this.scale);
  }

  /** Writes the gradient of x to dx, or adds it there. */
  backward(pass: Pass, dx: Tensor, dy: Tensor, x: Tensor, accumulate = false): void {
    const { weight, eps, scale } = this;
    const dweight = pass.gradientOf(weight);
    pass.grads.rmsNorm({ dx, dy, x, weight, eps, scale, accumulate, dweight });
  }
}
