import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import type { Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Step, StepAttention } from '../runner/step';

/** LongCat's factors on the compressed query and the latent (a_q, a_kv); 1 elsewhere. */
export interface MlaScales {
  query: number;
  latent: number;
}

/**
 * Multi-head Latent Attention (DeepSeek-V2, arXiv 2405.04434; model-spec sections 1.3 and 8).
 *
 *     q      = W_qb ( a_q norm(W_qa h) )              or W_q h where the query is not compressed
 *     c, k   = split( W_kva h );  cache row = [ a_kv norm(c) | rope(k) ]
 *     o      = W_o concat_h( softmax(scale q_h . k_h) v_h ),  [k_h | v_h] = W_kvb c
 *
 * Few new tokens of a sequence use the absorbed form (queries mapped into the latent space), many
 * the expanded one (keys and values made from the latents); both give the same result.
 */
export class Mla {
  private readonly queryDown: { weight: Weight; norm: Tensor } | undefined;
  private readonly queryUp: Weight;
  private readonly latentDown: Weight;
  private readonly latentNorm: Tensor;
  private readonly expand: Weight; // kv_b_proj, [heads * (nope + value), latent]
  private readonly absorbKey: Tensor; // W_UK transposed, [heads, latent, nope]
  private readonly absorbValue: Tensor; // W_UV, [heads, value, latent]
  private readonly output: Weight;
  private readonly softmaxScale: number;

  /** `index` counts attentions through the whole model; it names the KV cache and the layer group. */
  constructor(
    weights: WeightSource,
    prefix: string,
    private readonly config: MlaConfig,
    private readonly index: number,
    private readonly scales: MlaScales,
    softmaxFactor: number,
  ) {
    const { hiddenSize, heads, qLoraRank, kvLoraRank, nopeDim, ropeDim, valueDim } = config;
    const queryDim = heads * (nopeDim + ropeDim);
    if (qLoraRank === null) {
      this.queryUp = weights.matrix(`${prefix}q_proj.weight`, queryDim, hiddenSize);
    } else {
      this.queryDown = {
        weight: weights.matrix(`${prefix}q_a_proj.weight`, qLoraRank, hiddenSize),
        norm: weights.vector(`${prefix}q_a_layernorm.weight`, qLoraRank),
      };
      this.queryUp = weights.matrix(`${prefix}q_b_proj.weight`, queryDim, qLoraRank);
    }
    const cached = kvLoraRank + ropeDim;
    this.latentDown = weights.matrix(`${prefix}kv_a_proj_with_mqa.weight`, cached, hiddenSize);
    this.latentNorm = weights.vector(`${prefix}kv_a_layernorm.weight`, kvLoraRank);
    this.output = weights.matrix(`${prefix}o_proj.weight`, hiddenSize, heads * valueDim);

    const perHead = nopeDim + valueDim;
    const expand = weights.plainMatrix(`${prefix}kv_b_proj.weight`, heads * perHead, kvLoraRank);
    this.expand = { tensor: expand };
    const headStride = perHead * kvLoraRank;
    this.absorbKey = expand.view(
      expand.dtype,
      [heads, kvLoraRank, nopeDim],
      [headStride, 1, kvLoraRank],
      0,
    );
    this.absorbValue = expand.view(
      expand.dtype,
      [heads, valueDim, kvLoraRank],
      [headStride, kvLoraRank, 1],
      nopeDim * kvLoraRank,
    );
    this.softmaxScale = softmaxFactor / Math.sqrt(nopeDim + ropeDim);
  }

  /** Adds the attention's output to `residual`; h is the normalised input. Both [rows, hidden]. */
  addTo(residual: Tensor, step: Step, h: Tensor): void {
    const { heads, valueDim, nopeDim, ropeDim, rmsNormEps } = this.config;
    const { ops, rows, absorbedRows } = step;
    const attention = step.attention(this.index);

    const q = this.query(ops, h).reshape(rows, heads, nopeDim + ropeDim);
    ops.rope(q.slice(2, nopeDim, nopeDim + ropeDim), step.ropeTable);
    ops.latentStore(
      attention.cache,
      ops.linear(h, this.latentDown),
      this.latentNorm,
      step.ropeTable,
      attention.slots,
      rmsNormEps,
      this.scales.latent,
    );

    const out = ops.float(rows, heads, valueDim); // rounds are merged in it
    if (absorbedRows > 0) {
      this.absorbed(step, attention, q.slice(0, 0, absorbedRows), out.slice(0, 0, absorbedRows));
    }
    if (absorbedRows < rows) {
      this.expanded(
        step,
        attention,
        q.slice(0, absorbedRows, rows),
        out.slice(0, absorbedRows, rows),
      );
    }
    const merged = ops.toActivation(out.reshape(rows, heads * valueDim));
    ops.addLinear(residual, merged, this.output);
  }

  private query(ops: Ops, h: Tensor): Tensor {
    if (this.queryDown === undefined) return ops.linear(h, this.queryUp);
    const { weight, norm } = this.queryDown;
    const compressed = ops.linear(h, weight);
    return ops.linear(
      ops.rmsNorm(compressed, norm, this.config.rmsNormEps, this.scales.query),
      this.queryUp,
    );
  }

  /** softmax(scale (W_UKᵀ q | q_rope) . cache) cache, then W_UV. */
  private absorbed(step: Step, attention: StepAttention, q: Tensor, out: Tensor): void {
    const { ops } = step;
    const { heads, kvLoraRank, nopeDim, ropeDim } = this.config;
    const width = kvLoraRank + ropeDim;
    const query = ops.activation(q.dim(0), heads, width);
    ops.headLinear(query.slice(2, 0, kvLoraRank), q.slice(2, 0, nopeDim), this.absorbKey);
    ops.cast(query.slice(2, kvLoraRank, width), q.slice(2, nopeDim, nopeDim + ropeDim));
    const latent = ops.attentionDecode(
      query,
      attention.cache,
      kvLoraRank,
      attention.blocks,
      step.queryStarts,
      step.absorbedPositions,
      this.softmaxScale,
      attention.range,
    );
    ops.headLinear(out, latent, this.absorbValue);
  }

  /** Rounds of expanded keys and values, bounded by the workspace and merged by log-sum-exp. */
  expanded(step: Step, attention: StepAttention, q: Tensor, out: Tensor): void {
    const { ops } = step;
    const { heads, kvLoraRank, nopeDim, ropeDim, valueDim } = this.config;
    const lse = ops.float(q.dim(0), heads);
    ops.fill(lse, -Infinity);
    for (const round of attention.rounds) {
      ops.arena.scope(() => {
        const keys = round.slots.dim(0);
        const rows = ops.gatherRows(attention.cache, round.slots);
        const latents = rows.slice(1, 0, kvLoraRank);
        const kv = ops.linear(latents, this.expand).reshape(keys, heads, nopeDim + valueDim);
        const kRope = rows.slice(1, kvLoraRank, kvLoraRank + ropeDim);
        ops.attentionPrefill(
          { out, lse },
          q,
          kv,
          kRope,
          round.segments,
          this.softmaxScale,
          attention.range,
        );
      });
    }
  }
}
