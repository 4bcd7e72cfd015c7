import type { WeightSource } from '../../checkpoint/weights';
import type { Ops } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import type { Pass } from '../pass';

/** RMSNorm: scale * w * x / rms(x). */
export class Norm {
  private readonly weight: Tensor;

  constructor(
    weights: WeightSource,
    name: string,
    readonly width: number,
    private readonly eps: number,
    private readonly scale = 1,
  ) {
    this.weight = weights.vector(name, width);
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
