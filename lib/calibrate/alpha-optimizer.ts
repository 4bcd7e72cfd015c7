const beta1 = 0.9;
const beta2 = 0.999;
const epsilon = 1e-8;

/** All that Adam knows; plain numbers, which JSON keeps to the bit. */
export interface AlphaState {
  steps: number;
  alphas: number[];
  mean: number[];
  square: number[];
}

/**
 * Adam over the alphas. They are few, so they live on the host: as f32 values, which the device gets
 * at each step, with moments in double precision.
 */
export class AlphaOptimizer {
  private constructor(private readonly state: AlphaState) {}

  /** Every attention is full at first. */
  static start(count: number): AlphaOptimizer {
    const filled = (value: number) => new Array<number>(count).fill(value);
    return new AlphaOptimizer({ steps: 0, alphas: filled(1), mean: filled(0), square: filled(0) });
  }

  static resume(state: AlphaState): AlphaOptimizer {
    return new AlphaOptimizer(structuredClone(state));
  }

  save(): AlphaState {
    return structuredClone(this.state);
  }

  /** In [0, 1]: what the forward pass uses, and what is ranked at the end. */
  get alphas(): Float32Array {
    return Float32Array.from(this.state.alphas);
  }

  /** One step down the gradient, and back into [0, 1]. */
  step(gradient: ArrayLike<number>, learningRate: number): void {
    const { state } = this;
    state.steps++;
    const unbias1 = 1 - beta1 ** state.steps;
    const unbias2 = 1 - beta2 ** state.steps;
    state.alphas.forEach((alpha, i) => {
      const slope = gradient[i] ?? 0;
      const mean = beta1 * (state.mean[i] ?? 0) + (1 - beta1) * slope;
      const square = beta2 * (state.square[i] ?? 0) + (1 - beta2) * slope * slope;
      state.mean[i] = mean;
      state.square[i] = square;
      const change = (learningRate * (mean / unbias1)) / (Math.sqrt(square / unbias2) + epsilon);
      state.alphas[i] = Math.fround(Math.min(Math.max(alpha - change, 0), 1));
    });
  }
}
