import type { GradientOps } from '../native/gradient-ops';
import type { Joined, KeyRange, Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';

/** What an attention is in one pass. */
export type AttentionMode =
  | {
      kind: 'full';
      /** Gets the result, f32 [rows, heads, value]: for a pass that mixes it in as a constant. */
      keep?: ((out: Tensor) => void) | undefined;
    }
  | { kind: 'streaming'; range: KeyRange }
  | {
      /** alpha * full + (1 - alpha) * streaming. */
      kind: 'mixed';
      range: KeyRange;
      alpha: Tensor; // f32 [1]
      dAlpha: Tensor; // f32 [1], added to
      /** The full term of another pass, which no gradient goes through. */
      full?: (() => Tensor) | undefined;
    };

/** Whole sequences on their way through a model, forward and back. */
export interface Pass {
  ops: Ops;
  grads: GradientOps;
  rows: number;
  tokens: Tensor; // i32 [rows]
  segments: Tensor; // i32 [sequences, 6], as in native/ops/attention/attention.h
  ropeTable: Tensor; // f32 [rows, rope]
  backTable: Tensor; // the same of negated positions: the transposed rotations
  attention(index: number): AttentionMode;
  /** Where the gradient of a weight is added up, f32 of its shape; undefined: it is frozen. */
  gradientOf(weight: Tensor): Tensor | undefined;
  /** Is told, on the way back, of every router with a correction bias, and of its experts' rows. */
  routed?: ((bias: Tensor, starts: Tensor) => void) | undefined;
}

/** dw += dyᵀ x of matrices that share x and are not frozen; dy is [rows, sum of n]. */
export function addWeightGradients(pass: Pass, weights: Joined, dy: Tensor, x: Tensor): void {
  let from = 0;
  for (const { tensor } of weights) {
    const to = from + tensor.dim(0);
    const dw = pass.gradientOf(tensor);
    if (dw !== undefined) pass.grads.addLinearWeight(dw, dy.slice(1, from, to), x);
    from = to;
  }
}

/** A copy of the residual stream, which the layers change in place. */
export function copyOf(ops: Ops, x: Tensor): Tensor {
  const copy = ops.float(...x.shape);
  ops.cast(copy, x);
  return copy;
}

/** Zeros in f32, for gradients that are added up. */
export function zeros(ops: Ops, ...shape: number[]): Tensor {
  const tensor = ops.float(...shape);
  ops.fill(tensor, 0);
  return tensor;
}
