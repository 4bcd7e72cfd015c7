import type { MlaConfig } from '../../checkpoint/mla-config';
import type { MlaScales, MlaWeights } from '../../layers/mla';
import {
  attentionBackward,
  attentionForward,
  mixAttention,
  mixAttentionBackward,
  type AttentionGradients,
  type AttentionInputs,
  type AttentionResult,
} from '../../native/attention-gradient-ops';
import { fullRange, type KeyRange } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import { addWeightGradients, type AttentionMode, type Pass } from '../pass';
import { Norm } from './norm';

export interface MlaRecord {
  h: Tensor; // [rows, hidden]
  latents: Tensor; // [rows, query rank + latent + rope]: what the down projections give
  query: Tensor; // what is projected up to the queries: normalised, or h
  latent: Tensor; // [rows, latent], normalised
  /** Without the range, which full and streaming attention do not share. */
  inputs: Omit<AttentionInputs, 'range'>;
  attended: Attended;
}

/** The result of an attention, and of its parts where it is mixed. */
interface Attended {
  out: Tensor; // [rows, heads, value]
  mode: AttentionMode;
  full?: AttentionResult | undefined;
  streaming?: AttentionResult | undefined;
  /** The full term of a mix, which may be another pass's. */
  fullOut?: Tensor | undefined;
}

/**
 * Multi-head Latent Attention over whole sequences, in the expanded form (model-spec sections 1.3
 * and 8); full, streaming, or LoZA's mix of both:
 *
 *     q_c, c, k = split( [W_qa; W_kva] h )
 *     q  = rope( W_qb ( a_q norm(q_c) ) ),  [k_h | v_h] = W_kvb ( a_kv norm(c) ),  k_r = rope(k)
 *     o  = W_o ( alpha * full(q, k, v) + (1 - alpha) * streaming(q, k, v) )
 */
export class Mla {
  private readonly queryNorm: Norm | undefined; // undefined: the query is not compressed
  private readonly latentNorm: Norm;
  private readonly softmaxScale: number;

  /** `index` counts attentions through the whole model. */
  constructor(
    private readonly taken: MlaWeights,
    private readonly config: MlaConfig,
    private readonly index: number,
    scales: MlaScales,
    softmaxFactor: number,
  ) {
    const { nopeDim, ropeDim, rmsNormEps } = config;
    const { queryNorm, latentNorm } = taken;
    this.queryNorm = queryNorm && new Norm(queryNorm, rmsNormEps, scales.query);
    this.latentNorm = new Norm(latentNorm, rmsNormEps, scales.latent);
    this.softmaxScale = softmaxFactor / Math.sqrt(nopeDim + ropeDim);
  }

  /** Adds the result to `residual`. */
  forward(pass: Pass, residual: Tensor, h: Tensor): MlaRecord {
    const { ops, rows, ropeTable, segments } = pass;
    const { heads, nopeDim, ropeDim, valueDim } = this.config;
    const latents = ops.linears(h, this.taken.down);
    const parts = this.split(latents);
    const query = this.queryNorm?.forward(ops, parts.query) ?? h;
    const q = ops.linear(query, this.taken.queryUp).reshape(rows, heads, nopeDim + ropeDim);
    ops.rope(rotated(q, nopeDim), ropeTable);
    const latent = this.latentNorm.forward(ops, parts.latent);
    const kv = ops.linear(latent, this.taken.expand).reshape(rows, heads, nopeDim + valueDim);
    ops.rope(oneHead(parts.kRope), ropeTable);

    const { softmaxScale } = this;
    const inputs = { q, kv, kRope: parts.kRope, segments, softmaxScale };
    const attended = attend(pass, inputs, pass.attention(this.index));
    ops.addLinear(residual, attended.out.reshape(rows, heads * valueDim), this.taken.output);
    return { h, latents, query, latent, inputs, attended };
  }

  /** Adds the gradient of h to dh, f32. */
  backward(pass: Pass, record: MlaRecord, dResidual: Tensor, dh: Tensor): void {
    const { grads, ops, rows, backTable } = pass;
    const { nopeDim } = this.config;
    const { h, latents, query, latent, inputs, attended } = record;
    const dy = ops.toActivation(dResidual);
    addWeightGradients(pass, [this.taken.output], dy, flat(attended.out));
    const dOut = grads.linearInput(dy, this.taken.output).reshape(...attended.out.shape);

    const dLatents = ops.activation(rows, latents.dim(1));
    const [parts, dParts] = [this.split(latents), this.split(dLatents)];
    const dInputs = {
      q: ops.activation(...inputs.q.shape),
      kv: ops.activation(...inputs.kv.shape),
      kRope: dParts.kRope,
    };
    attendBackward(pass, inputs, attended, dOut, dInputs);
    grads.rope(rotated(dInputs.q, nopeDim), backTable);
    grads.rope(oneHead(dInputs.kRope), backTable);

    const dKv = flat(dInputs.kv);
    addWeightGradients(pass, [this.taken.expand], dKv, latent);
    const dLatent = grads.linearInput(dKv, this.taken.expand);
    this.latentNorm.backward(pass, dParts.latent, dLatent, parts.latent);
    const dq = flat(dInputs.q);
    addWeightGradients(pass, [this.taken.queryUp], dq, query);
    if (this.queryNorm === undefined) {
      grads.addLinearInput(dh, dq, this.taken.queryUp);
    } else {
      const dQuery = grads.linearInput(dq, this.taken.queryUp);
      this.queryNorm.backward(pass, dParts.query, dQuery, parts.query);
    }
    addWeightGradients(pass, this.taken.down, dLatents, h);
    grads.addLinearsInput(dh, dLatents, this.taken.down);
  }

  /** The columns of [q_c | c | k]. */
  private split(latents: Tensor): { query: Tensor; latent: Tensor; kRope: Tensor } {
    const first = this.queryNorm?.width ?? 0;
    const second = first + this.config.kvLoraRank;
    return {
      query: latents.slice(1, 0, first),
      latent: latents.slice(1, first, second),
      kRope: latents.slice(1, second, latents.dim(1)),
    };
  }
}

type Inputs = MlaRecord['inputs'];

function attend(pass: Pass, inputs: Inputs, mode: AttentionMode): Attended {
  const { ops } = pass;
  const over = (range: KeyRange) => attentionForward(ops, { ...inputs, range });
  if (mode.kind === 'streaming') {
    const streaming = over(mode.range);
    return { mode, streaming, out: ops.toActivation(streaming.out) };
  }
  if (mode.kind === 'full') {
    const full = over(fullRange);
    mode.keep?.(full.out);
    return { mode, full, out: ops.toActivation(full.out) };
  }
  const full = mode.full === undefined ? over(fullRange) : undefined;
  const fullOut = full?.out ?? (mode.full as () => Tensor)();
  const streaming = over(mode.range);
  const out = mixAttention(ops, mode.alpha, fullOut, streaming.out);
  return { mode, full, streaming, fullOut, out };
}

function attendBackward(
  pass: Pass,
  inputs: Inputs,
  { mode, full, streaming, fullOut }: Attended,
  dOut: Tensor,
  into: AttentionGradients,
): void {
  const { ops } = pass;
  const back = (result: AttentionResult, range: KeyRange, d: Tensor, accumulate = false) =>
    attentionBackward(ops, { ...inputs, range }, result, d, { into, accumulate });
  if (mode.kind !== 'mixed') {
    const range = mode.kind === 'full' ? fullRange : mode.range;
    back((full ?? streaming) as AttentionResult, range, dOut);
    return;
  }
  const { alpha, dAlpha, range } = mode;
  const [fullTerm, streamed] = [fullOut as Tensor, streaming as AttentionResult];
  const dStreaming = ops.activation(...dOut.shape);
  const dFull = full && ops.activation(...dOut.shape);
  const parts = { full: dFull, streaming: dStreaming };
  mixAttentionBackward(ops, alpha, fullTerm, streamed.out, dOut, dAlpha, parts);
  back(streamed, range, dStreaming);
  if (full !== undefined && dFull !== undefined) back(full, fullRange, dFull, true);
}

/** The dimensions of q [rows, heads, nope + rope] that rotate. */
const rotated = (q: Tensor, nopeDim: number): Tensor => q.slice(2, nopeDim, q.dim(2));

/** Rows [rows, width], which may be strided, as [rows, 1, width]. */
function oneHead(x: Tensor): Tensor {
  const [rows, width] = [x.dim(0), x.dim(1)];
  return x.view(x.dtype, [rows, 1, width], [x.strides[0] ?? width, width, 1], 0);
}

const flat = (x: Tensor): Tensor => x.reshape(x.dim(0), x.dim(1) * x.dim(2));
