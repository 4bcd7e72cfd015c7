import type { MlaConfig } from '../checkpoint/mla-config';
import type { WeightSource } from '../checkpoint/weights';
import type { CompressedQuery, Joined, Ops, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Step, StepAttention, StepRound } from '../runner/step';

/** LongCat's factors on the compressed query and the latent (a_q, a_kv); 1 elsewhere. */
export interface MlaScales {
  query: number;
  latent: number;
}

export interface MlaWeights {
  down: Joined; // q_a_proj, if there is one, and kv_a_proj_with_mqa
  queryNorm: Tensor | undefined; // undefined: the query is not compressed
  queryUp: Weight;
  latentNorm: Tensor;
  expand: Weight; // kv_b_proj, [heads * (nope + value), latent]
  output: Weight;
}

export function takeMla(weights: WeightSource, prefix: string, config: MlaConfig): MlaWeights {
  const { hiddenSize, heads, qLoraRank, kvLoraRank, nopeDim, ropeDim, valueDim } = config;
  const queryDim = heads * (nopeDim + ropeDim);
  const down = [{ name: `${prefix}kv_a_proj_with_mqa.weight`, rows: kvLoraRank + ropeDim }];
  if (qLoraRank !== null) down.unshift({ name: `${prefix}q_a_proj.weight`, rows: qLoraRank });
  const expandedDim = heads * (nopeDim + valueDim);
  return {
    queryNorm:
      qLoraRank === null ? undefined : weights.vector(`${prefix}q_a_layernorm.weight`, qLoraRank),
    queryUp:
      qLoraRank === null
        ? weights.matrix(`${prefix}q_proj.weight`, queryDim, hiddenSize)
        : weights.matrix(`${prefix}q_b_proj.weight`, queryDim, qLoraRank),
    down: weights.joined(down, hiddenSize),
    latentNorm: weights.vector(`${prefix}kv_a_layernorm.weight`, kvLoraRank),
    output: weights.matrix(`${prefix}o_proj.weight`, hiddenSize, heads * valueDim),
    expand: {
      tensor: weights.plainMatrix(`${prefix}kv_b_proj.weight`, expandedDim, kvLoraRank),
    },
  };
}

/**
 * Multi-head Latent Attention (DeepSeek-V2, arXiv 2405.04434; model-spec sections 1.3 and 8).
 *
 *     q_c, c, k = split( [W_qa; W_kva] h );  cache row = [ a_kv norm(c) | rope(k) ]
 *     q      = W_qb ( a_q norm(q_c) )                 or W_q h where the query is not compressed
 *     o      = W_o concat_h( softmax(scale q_h . k_h) v_h ),  [k_h | v_h] = W_kvb c
 *
 * Few new tokens of a sequence use the absorbed form (queries mapped into the latent space), many
 * the expanded one (keys and values made from the latents); both give the same result.
 */
export class Mla {
  private readonly absorbKey: Tensor; // W_UK transposed, [heads, latent, nope]
  private readonly absorbValue: Tensor; // W_UV, [heads, value, latent]
  private readonly softmaxScale: number;

  /** `index` counts attentions through the whole model; it names the KV cache and the layer group. */
  constructor(
    private readonly taken: MlaWeights,
    private readonly config: MlaConfig,
    private readonly index: number,
    private readonly scales: MlaScales,
    softmaxFactor: number,
  ) {
    const { heads, kvLoraRank, nopeDim, ropeDim, valueDim } = config;
    const { tensor: expand } = taken.expand;
    const perHead = nopeDim + valueDim;
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
    const { heads, valueDim, nopeDim, ropeDim } = this.config;
    const { ops, rows, absorbedRows } = step;
    const attention = step.attention(this.index);
    const q = this.project(step, attention, h).reshape(rows, heads, nopeDim + ropeDim);

    const out = ops.activation(rows, heads, valueDim);
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
    ops.addLinear(residual, out.reshape(rows, heads * valueDim), this.taken.output);
  }

  /** Writes the cache rows and gives the query, [rows, heads * (nope + rope)], not yet rotated. */
  private project(step: Step, attention: StepAttention, h: Tensor): Tensor {
    const { ops } = step;
    const latents = ops.linears(h, this.taken.down);
    const query = this.compressedQuery(latents);
    const from = query?.x.dim(1) ?? 0;
    ops.latentStore(
      attention.cache,
      latents.slice(1, from, latents.dim(1)),
      this.taken.latentNorm,
      step.ropeTable,
      attention.slots,
      this.config.rmsNormEps,
      this.scales.latent,
      query,
    );
    return ops.linear(query?.x ?? h, this.taken.queryUp);
  }

  private compressedQuery(latents: Tensor): CompressedQuery | undefined {
    const weight = this.taken.queryNorm;
    if (weight === undefined) return undefined;
    return { x: latents.slice(1, 0, weight.dim(0)), weight, scale: this.scales.query };
  }

  /** softmax(scale (W_UKᵀ q | q_rope) . cache) cache, then W_UV. */
  private absorbed(step: Step, attention: StepAttention, q: Tensor, out: Tensor): void {
    const { ops } = step;
    const query = ops.absorbQuery(q, this.absorbKey, step.ropeTable.slice(0, 0, q.dim(0)));
    const latent = ops.attentionDecode(
      query,
      attention.cache,
      this.config.kvLoraRank,
      attention.blocks,
      step.queryStarts,
      step.absorbedPositions,
      this.softmaxScale,
      attention.range,
    );
    ops.headLinear(out, latent, this.absorbValue);
  }

  /**
   * Rounds of expanded keys and values, bounded by the workspace. One round writes its result; several
   * are merged in fp32 by log-sum-exp.
   */
  expanded(step: Step, attention: StepAttention, q: Tensor, out: Tensor): void {
    const { ops } = step;
    const { heads, nopeDim, ropeDim, valueDim } = this.config;
    const { rounds } = attention;
    const rows = q.dim(0);
    ops.rope(
      q.slice(2, nopeDim, nopeDim + ropeDim),
      step.ropeTable.slice(0, step.absorbedRows, step.rows),
    );
    ops.arena.scope(() => {
      const sum = rounds.length === 1 ? out : ops.float(rows, heads, valueDim);
      const lse = ops.float(rows, heads);
      ops.fill(lse, -Infinity);
      for (const round of rounds) {
        ops.arena.scope(() => this.expandedRound(ops, attention, round, q, { out: sum, lse }));
      }
      if (sum !== out) ops.cast(out, sum);
    });
  }

  private expandedRound(
    ops: Ops,
    { cache, range }: StepAttention,
    { slots, segments }: StepRound,
    q: Tensor,
    state: { out: Tensor; lse: Tensor },
  ): void {
    const { heads, kvLoraRank, nopeDim, ropeDim, valueDim } = this.config;
    const keys = slots.dim(0);
    const rows = ops.gatherRows(cache, slots, kvLoraRank + ropeDim);
    const latents = rows.slice(1, 0, kvLoraRank);
    const kv = ops.linear(latents, this.taken.expand).reshape(keys, heads, nopeDim + valueDim);
    const kRope = rows.slice(1, kvLoraRank, kvLoraRank + ropeDim);
    ops.attentionPrefill(state, q, kv, kRope, segments, this.softmaxScale, range);
  }
}
