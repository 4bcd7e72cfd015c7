import { fromNative, operations, type NativeOperation, type NativeStream } from './binding';
import type { Arena, Stream } from './device';
import type { DType, Tensor } from './tensor';

/** A matrix [n, k], or a stack of them [experts, n, k]; f8e4m3 ones come with their block scales. */
export interface Weight {
  tensor: Tensor;
  scale?: Tensor;
}

/** A compressed query on its way to its norm: native/ops/latent_store/latent_store.h. */
export interface CompressedQuery {
  x: Tensor; // [rows, query rank], normalised in place
  weight: Tensor; // [query rank]
  scale: number;
}

/**
 * Matrices that are multiplied by one input, in the order of their outputs: one where they could be
 * laid out as one, which costs one pass over the input.
 */
export type Joined = readonly Weight[];

/** The keys a query may see: native/ops/attention/key_range.h. */
export interface KeyRange {
  sinkBlocks: number;
  localBlocks: number;
}

/** Every key up to the query itself. */
export const fullRange: KeyRange = { sinkBlocks: 0, localBlocks: 2 ** 31 - 1 };

/** Blocks of one layer group, as decode attention reads them. */
export interface BlockView {
  blockTable: Tensor; // i32 [sequences, entries]
  firstLocal: Tensor; // i32 [sequences]
  /** From attentionPlan, once a step; a call without it plans for itself, which takes longer. */
  plan?: AttentionPlan;
}

/** Who does what in decode attention, over caches of one type. */
export interface AttentionPlan {
  memory: Tensor;
  cacheType: DType;
}

export interface RouterOptions {
  topK: number;
  scoring: 'softmax' | 'sigmoid';
  groupScore: 'max' | 'topTwoSum';
  groups: number;
  topGroups: number;
  normalize: boolean;
  scale: number;
}

/** Where each routed slot goes: native/ops/expert_plan/expert_plan.h. */
export interface ExpertPlan {
  order: Tensor;
  place: Tensor;
  starts: Tensor;
}

export interface SampleResult {
  tokens: Tensor; // i32 [rows]
  logprobs: Tensor; // f32 [rows]
  topTokens?: Tensor; // i32 [rows, alternatives]
  topLogprobs?: Tensor; // f32 [rows, alternatives]
}

/** What an operation takes, in the order of its params struct. */
export type Argument = Tensor | number | boolean | undefined;
type Arguments = Argument[];
type Run = Record<NativeOperation, (...args: Arguments) => void>;
/** Sees an operation that was just enqueued. */
export type Observer = (operation: NativeOperation, args: readonly Argument[]) => void;

/**
 * The operations of one stream, with outputs allocated in its arena. A call enqueues and returns;
 * formulas, shapes and dtypes are in native/ops/<op>/<op>.h.
 */
export class Ops {
  private run: Run;

  constructor(
    readonly stream: Stream,
    readonly arena: Arena,
  ) {
    this.run = bindOperations(stream.native);
  }

  /** Runs `body`; `observe` is called after each operation that it enqueues, not for its own. */
  trace(observe: Observer, body: () => void): void {
    const { run } = this;
    const traced = operations.map((name) => [
      name,
      (...args: Arguments) => {
        run[name](...args.slice()); // it puts handles in the place of tensors
        this.run = run;
        observe(name, args);
        this.run = tracedRun;
      },
    ]);
    const tracedRun = Object.fromEntries(traced) as Run;
    this.run = tracedRun;
    try {
      body();
    } finally {
      this.run = run;
    }
  }

  /** Enqueues an operation by its native name: for classes beside this one, such as GradientOps. */
  enqueue(operation: NativeOperation, ...args: Arguments): void {
    this.run[operation](...args);
  }

  float(...shape: number[]): Tensor {
    return this.arena.allocate('f32', shape);
  }

  /** A tensor of the device's type of activations: f32 on the CPU, bf16 or f32 on CUDA. */
  activation(...shape: number[]): Tensor {
    return this.arena.allocate(this.stream.activation, shape);
  }

  integers(...shape: number[]): Tensor {
    return this.arena.allocate('i32', shape);
  }

  /** An i32 tensor that holds `values`, in stream order. */
  upload(values: Int32Array, ...shape: number[]): Tensor {
    const tensor = this.integers(...(shape.length > 0 ? shape : [values.length]));
    if (values.length > 0) this.stream.write(tensor, values);
    return tensor;
  }

  /**
   * out[i] = table[ids[i]]: embeddings, chosen rows, cached keys. `width` is the values of a row, which
   * an FP8 latent cache does not have one an element.
   */
  gatherRows(table: Tensor, ids: Tensor, width = table.dim(1)): Tensor {
    const out = this.activation(ids.dim(0), width);
    this.run.GatherRows(out, table, ids);
    return out;
  }

  /** The same in f32: rows of the residual stream. */
  gatherFloatRows(table: Tensor, ids: Tensor): Tensor {
    const out = this.float(ids.dim(0), table.dim(1));
    this.run.GatherRows(out, table, ids);
    return out;
  }

  /** x Wᵀ. */
  linear(x: Tensor, weight: Weight): Tensor {
    const out = this.activation(x.dim(0), weight.tensor.dim(0));
    this.run.Linear(out, x, weight.tensor, weight.scale, false);
    return out;
  }

  /** x Wᵀ of matrices that share x, beside each other: [rows, sum of n]. */
  linears(x: Tensor, weights: Joined): Tensor {
    const columns = weights.map(({ tensor }) => tensor.dim(0));
    const out = this.activation(x.dim(0), sumOf(columns));
    this.besideEachOther(out, columns, (part, i) => {
      const { tensor, scale } = weights[i] as Weight;
      this.run.Linear(part, x, tensor, scale, false);
    });
    return out;
  }

  /** x Wᵀ in f32, whatever the type of activations: logits. */
  linearFloat(x: Tensor, weight: Weight): Tensor {
    const out = this.float(x.dim(0), weight.tensor.dim(0));
    this.run.Linear(out, x, weight.tensor, weight.scale, false);
    return out;
  }

  /** sum += x Wᵀ. */
  addLinear(sum: Tensor, x: Tensor, weight: Weight): void {
    this.run.Linear(sum, x, weight.tensor, weight.scale, true);
  }

  /** out[t, h] = W[h] x[t, h], into a view the caller gives. */
  headLinear(out: Tensor, x: Tensor, weight: Tensor): void {
    this.run.HeadLinear(out, x, weight);
  }

  rmsNorm(x: Tensor, weight: Tensor, eps: number, scale = 1): Tensor {
    const out = this.activation(x.dim(0), x.dim(1));
    this.run.RmsNorm(out, x, weight, eps, scale);
    return out;
  }

  /** cos and sin of each row's position, once a step. */
  ropeTable(
    positions: Tensor,
    inverseFrequencies: Tensor,
    attentionScale: number,
    exactAngles: boolean,
  ): Tensor {
    const table = this.float(positions.dim(0), inverseFrequencies.dim(1) * 2);
    this.run.RopeTable(table, positions, inverseFrequencies, attentionScale, exactAngles);
    return table;
  }

  /** Rotates x [rows, heads, dim] in place. */
  rope(x: Tensor, table: Tensor): void {
    this.run.Rope(x, x, table);
  }

  /** [W_UKᵀ q_nope | rope(q_rope)], [rows, heads, latent + rope]. */
  absorbQuery(q: Tensor, weight: Tensor, ropeTable: Tensor): Tensor {
    const out = this.activation(q.dim(0), q.dim(1), weight.dim(1) + ropeTable.dim(1));
    this.run.AbsorbQuery(out, q, weight, ropeTable);
    return out;
  }

  /** Writes the cache rows, and normalises the compressed query if there is one. */
  latentStore(
    cache: Tensor,
    kv: Tensor,
    weight: Tensor,
    ropeTable: Tensor,
    slots: Tensor,
    eps: number,
    scale: number,
    query?: CompressedQuery,
  ): void {
    this.run.LatentStore(
      cache,
      kv,
      weight,
      ropeTable,
      slots,
      eps,
      scale,
      query?.x,
      query?.weight,
      query?.scale ?? 1,
    );
  }

  /** One round of expanded attention, merged into `out` and `lse`. */
  attentionPrefill(
    state: { out: Tensor; lse: Tensor },
    q: Tensor,
    kv: Tensor,
    kRope: Tensor,
    segments: Tensor,
    softmaxScale: number,
    range: KeyRange,
  ): void {
    const { sinkBlocks, localBlocks } = range;
    const { out, lse } = state;
    this.run.AttentionPrefill(
      out,
      lse,
      q,
      kv,
      kRope,
      segments,
      softmaxScale,
      sinkBlocks,
      localBlocks,
    );
  }

  /**
   * Who does what in all attentionDecode calls of a step that share these tensors and have caches of
   * the type of `cache`. Until those calls only rows of `positions` may be written in them.
   */
  attentionPlan(
    cache: Tensor,
    view: BlockView,
    queryStarts: Tensor,
    positions: Tensor,
    heads: number,
    range: KeyRange,
  ): AttentionPlan {
    const { blockTable, firstLocal } = view;
    const rows = positions.dim(0);
    // plan_ints in native/ops/attention/attention.h
    const records = 513 + blockTable.dim(0) + Math.floor((rows * heads) / 8);
    const memory = this.integers(records * 32 + rows * heads * 4);
    const tables = [blockTable, firstLocal, queryStarts, positions] as const;
    this.run.AttentionPlan(memory, cache, ...tables, heads, range.sinkBlocks, range.localBlocks);
    return { memory, cacheType: cache.dtype };
  }

  /**
   * Absorbed attention over the paged cache: [rows, heads, latent]. `lse` [rows, heads] receives the
   * log-sum-exp of the scores.
   */
  attentionDecode(
    q: Tensor,
    cache: Tensor,
    latent: number,
    view: BlockView,
    queryStarts: Tensor,
    positions: Tensor,
    softmaxScale: number,
    range: KeyRange,
    lse?: Tensor,
  ): Tensor {
    const out = this.activation(q.dim(0), q.dim(1), latent);
    this.run.AttentionDecode(
      out,
      lse,
      q,
      cache,
      view.blockTable,
      view.firstLocal,
      queryStarts,
      positions,
      view.plan?.cacheType === cache.dtype ? view.plan.memory : undefined,
      softmaxScale,
      range.sinkBlocks,
      range.localBlocks,
    );
    return out;
  }

  /** silu(gate) * up of [gate | up], [rows, 2 * width]. */
  swiglu(gateUp: Tensor): Tensor {
    const width = gateUp.dim(1) / 2;
    const out = this.activation(gateUp.dim(0), width);
    this.run.Swiglu(out, gateUp.slice(1, 0, width), gateUp.slice(1, width, 2 * width));
    return out;
  }

  route(
    logits: Tensor,
    bias: Tensor | undefined,
    options: RouterOptions,
  ): { ids: Tensor; weights: Tensor } {
    const rows = logits.dim(0);
    const ids = this.integers(rows, options.topK);
    const weights = this.float(rows, options.topK);
    this.run.Route(
      ids,
      weights,
      logits,
      bias,
      options.scoring === 'softmax' ? 0 : 1,
      options.groupScore === 'max' ? 0 : 1,
      options.groups,
      options.topGroups,
      options.normalize,
      options.scale,
    );
    return { ids, weights };
  }

  expertPlan(ids: Tensor, experts: number): ExpertPlan {
    const slots = ids.elements;
    const plan = {
      order: this.integers(slots),
      place: this.integers(slots),
      starts: this.integers(experts + 1),
    };
    this.run.ExpertPlan(plan.order, plan.place, plan.starts, ids);
    return plan;
  }

  /** Each expert's matrix on its rows; with `topK`, x is read through the plan's order. */
  groupedLinear(x: Tensor, weight: Weight, plan: ExpertPlan, topK?: number): Tensor {
    return this.groupedLinears(x, [weight], plan, topK);
  }

  /** The same of matrices that share x, beside each other. */
  groupedLinears(x: Tensor, weights: Joined, plan: ExpertPlan, topK?: number): Tensor {
    const columns = weights.map(({ tensor }) => tensor.dim(1));
    const out = this.activation(plan.order.dim(0), sumOf(columns));
    const order = topK === undefined ? undefined : plan.order;
    this.besideEachOther(out, columns, (part, i) => {
      const { tensor, scale } = weights[i] as Weight;
      this.run.GroupedLinear(part, x, tensor, scale, plan.starts, order, topK ?? 1);
    });
    return out;
  }

  /** sum += the experts' weighted results, and identity for zero experts. */
  combine(
    sum: Tensor,
    y: Tensor,
    plan: ExpertPlan,
    weights: Tensor,
    identity: Tensor | undefined,
  ): void {
    this.run.Combine(sum, y, plan.place, weights, identity);
  }

  /** One token a row; `settings` and `integers` as in native/ops/sample/sample.h. */
  sample(
    logits: Tensor,
    settings: Tensor,
    integers: Tensor,
    seen: Tensor | undefined,
    alternatives: number,
  ): SampleResult {
    const rows = logits.dim(0);
    const result: SampleResult = { tokens: this.integers(rows), logprobs: this.float(rows) };
    if (alternatives > 0) {
      result.topTokens = this.integers(rows, alternatives);
      result.topLogprobs = this.float(rows, alternatives);
    }
    this.sampleInto(result, logits, settings, integers, seen);
    return result;
  }

  sampleInto(
    result: SampleResult,
    logits: Tensor,
    settings: Tensor,
    integers: Tensor,
    seen: Tensor | undefined,
  ): void {
    const { tokens, logprobs, topTokens, topLogprobs } = result;
    this.run.Sample(tokens, logprobs, topTokens, topLogprobs, logits, settings, integers, seen);
  }

  /** Converts (and, with a scale, dequantises) into a tensor the caller gives. */
  cast(out: Tensor, input: Tensor, scale?: Tensor): void {
    this.run.Cast(out, input, scale);
  }

  /** x itself if it has the type of activations, else a copy that has. */
  toActivation(x: Tensor): Tensor {
    if (x.dtype === this.stream.activation) return x;
    const out = this.activation(...x.shape);
    this.cast(out, x);
    return out;
  }

  /** Random values of mean 0 and this standard deviation, which `seed` [low, high] decides. */
  fillRandom(out: Tensor, seed: readonly [number, number], deviation: number): void {
    this.run.FillRandom(out, seed[0], seed[1], deviation);
  }

  /** The device's time in nanoseconds, as two i32. */
  clock(out: Tensor): void {
    this.run.Clock(out);
  }

  fill(out: Tensor, value: number): void {
    this.run.Fill(out, value);
  }

  /** Calls `body` with each group of `columns` of `out`. */
  private besideEachOther(
    out: Tensor,
    columns: readonly number[],
    body: (part: Tensor, index: number) => void,
  ): void {
    if (columns.length === 1) return body(out, 0);
    let from = 0;
    columns.forEach((count, i) => {
      body(out.slice(1, from, from + count), i);
      from += count;
    });
  }
}

function sumOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}

/** Tensors become handles, absent ones 0; native errors become LozaErrors. */
function bindOperations(native: NativeStream): Run {
  const bound = operations.map((name) => [
    name,
    (...args: Arguments) => {
      for (let i = 0; i < args.length; i++) {
        const argument = args[i];
        if (argument === undefined) args[i] = 0;
        else if (typeof argument === 'object') args[i] = argument.handle;
      }
      try {
        native[name](...(args as (number | boolean)[]));
      } catch (error) {
        throw fromNative(error);
      }
    },
  ]);
  return Object.fromEntries(bound) as Run;
}
