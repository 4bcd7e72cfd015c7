import type { KeyRange, Ops } from './ops';
import type { Tensor } from './tensor';

/** What expanded attention reads; shapes in native/ops/attention_backward/attention_backward.h. */
export interface AttentionInputs {
  q: Tensor; // [rows, heads, nope + rope]
  kv: Tensor; // [keys, heads, nope + value]
  kRope: Tensor; // [keys, rope]
  segments: Tensor; // i32 [segments, 6]: a sequence each
  softmaxScale: number;
  range: KeyRange;
}

/** Its result, and the log-sum-exp of the scores that the gradient needs. */
export interface AttentionResult {
  out: Tensor; // [rows, heads, value]
  lse: Tensor; // f32 [rows, heads]
}

export interface AttentionGradients {
  q: Tensor;
  kv: Tensor;
  kRope: Tensor;
}

export interface AttentionBackwardOptions {
  /** Where the gradients go; without it, new tensors of the type of activations. */
  into?: AttentionGradients;
  /** Adds to what is there. */
  accumulate?: boolean;
}

/**
 * Expanded attention of whole sequences in one call. `out` is f32 (the gradient of a mix needs the
 * difference of two of them) unless the caller gives a tensor. Rows of no segment are not written.
 */
export function attentionForward(
  ops: Ops,
  inputs: AttentionInputs,
  out: Tensor = newOut(ops, inputs),
): AttentionResult {
  const { q, kv, kRope, segments, softmaxScale, range } = inputs;
  const lse = ops.float(q.dim(0), q.dim(1));
  ops.fill(lse, -Infinity);
  ops.attentionPrefill({ out, lse }, q, kv, kRope, segments, softmaxScale, range);
  return { out, lse };
}

function newOut(ops: Ops, { q, kv, kRope }: AttentionInputs): Tensor {
  const value = kv.dim(2) - (q.dim(2) - kRope.dim(1));
  return ops.float(q.dim(0), q.dim(1), value);
}

/** The gradients of q, kv and kRope from the gradient of `result.out`, [rows, heads, value]. */
export function attentionBackward(
  ops: Ops,
  inputs: AttentionInputs,
  result: AttentionResult,
  dOut: Tensor,
  options: AttentionBackwardOptions = {},
): AttentionGradients {
  const { q, kv, kRope, segments, softmaxScale, range } = inputs;
  const into = options.into ?? {
    q: ops.activation(...q.shape),
    kv: ops.activation(...kv.shape),
    kRope: ops.activation(...kRope.shape),
  };
  ops.enqueue(
    'AttentionBackward',
    into.q,
    into.kv,
    into.kRope,
    q,
    kv,
    kRope,
    result.out,
    result.lse,
    dOut,
    segments,
    softmaxScale,
    range.sinkBlocks,
    range.localBlocks,
    options.accumulate ?? false,
  );
  return into;
}

/** alpha * full + (1 - alpha) * streaming in the type of activations; alpha is f32 [1]. */
export function mixAttention(ops: Ops, alpha: Tensor, full: Tensor, streaming: Tensor): Tensor {
  const out = ops.activation(...full.shape);
  ops.enqueue('MixAttention', out, full, streaming, alpha);
  return out;
}

/** Which gradients of a mix to compute besides that of alpha. */
export interface MixGradients {
  full?: Tensor | undefined;
  streaming?: Tensor | undefined;
}

/**
 * Gradients of mixAttention into the tensors of `into` that are there (overwritten), and
 * `dAlpha`, f32 [1], += sum(dOut * (full - streaming)).
 */
export function mixAttentionBackward(
  ops: Ops,
  alpha: Tensor,
  full: Tensor,
  streaming: Tensor,
  dOut: Tensor,
  dAlpha: Tensor,
  into: MixGradients,
): void {
  ops.enqueue(
    'MixAttentionBackward',
    into.full,
    into.streaming,
    dAlpha,
    dOut,
    full,
    streaming,
    alpha,
  );
}
