import type { ExpertPlan, Joined, Ops, RouterOptions, Weight } from './ops';
import type { Tensor } from './tensor';

/** What rms_norm was given, and where its gradients go. */
export interface RmsNormGradient {
  dx: Tensor; // act | f32 [rows, width]; may be `dy`
  /** Adds to dx instead of writing it: the residual stream's gradient. */
  accumulate?: boolean;
  /** f32 [width], added to; absent: not wanted. */
  dweight?: Tensor | undefined;
  dy: Tensor; // act | f32 [rows, width]
  x: Tensor; // act | f32 [rows, width]
  weight: Tensor; // [width]
  eps: number;
  scale?: number;
}

/** One step of AdamW on one tensor; all f32 but `copy`. */
export interface AdamwStep {
  weight: Tensor;
  m: Tensor;
  v: Tensor;
  gradient: Tensor;
  /** What the next forward pass reads, where that is not `weight` itself. */
  copy?: Tensor | undefined;
  /** From clipFactor. */
  clip?: Tensor | undefined;
  rate: number;
  beta1: number;
  beta2: number;
  eps: number;
  decay: number;
  /** 1 for the first. */
  step: number;
}

/** A language model's head and what its rows should say next. */
export interface HeadLoss {
  x: Tensor; // act [rows, hidden], the output of the final norm
  weight: Weight; // [vocabulary, hidden]
  targets: Tensor; // i32 [rows]
  weights: Tensor; // f32 [rows]; 0: the row does not count
  dx?: Tensor | undefined; // act | f32 [rows, hidden], written; absent: only the loss
  dweight?: Tensor | undefined; // f32 [vocabulary, hidden], added to; absent: not wanted
  /** Rows whose logits exist at a time. */
  chunk: number;
}

/**
 * The reverse mode of the operations in ops.ts, without attention: gradients of inputs always, of
 * weights when asked. Formulas, shapes and dtypes are in native/ops/<op>/<op>.h; how a layer is put
 * together is in docs/gradients.md. The same inputs give the same bits, every time.
 *
 * Names: `dx` is the gradient of x. Gradients of activations have their type ("act"), those of the
 * residual stream and of weights are f32. "add" methods add to a tensor that the caller gives (and
 * that must hold something: zeros, to begin with); the others return a new one or write the one given.
 *
 * The forward pass of training keeps no cache. It calls, where inference calls
 *   latent_store            rmsNorm(latents.slice(..), norm, eps, scale) for the query and for the
 *                           latent, and rope on the view [rows, 1, rope] of the rest;
 *   gather_rows of a cache  linear(latent, kv_b_proj) of all rows;
 *   attention               the operations of attention-gradient-ops.ts;
 * and keeps what the backward operations take: x, latents, [gate | up], logits, ids, weights, the plan.
 */
export class GradientOps {
  constructor(readonly ops: Ops) {}

  // ---- linear ------------------------------------------------------------------------------------

  /** dy W: the gradient of the input of `ops.linear`. */
  linearInput(dy: Tensor, weight: Weight): Tensor {
    const dx = this.ops.activation(dy.dim(0), weight.tensor.dim(1));
    this.ops.enqueue('LinearInputGradient', dx, dy, weight.tensor, weight.scale, false);
    return dx;
  }

  /** dx += dy W. An f32 dx is rounded once, however many products are added. */
  addLinearInput(dx: Tensor, dy: Tensor, weight: Weight): void {
    this.ops.enqueue('LinearInputGradient', dx, dy, weight.tensor, weight.scale, true);
  }

  /** The same for matrices that share x (`ops.linears`): dy is [rows, sum of n]. */
  addLinearsInput(dx: Tensor, dy: Tensor, weights: Joined): void {
    const columns = weights.map(({ tensor }) => tensor.dim(0));
    eachPart(dy, columns, (part, i) => this.addLinearInput(dx, part, weights[i] as Weight));
  }

  /** dw += dyᵀ x; dw f32 [n, k]. */
  addLinearWeight(dw: Tensor, dy: Tensor, x: Tensor): void {
    this.ops.enqueue('LinearWeightGradient', dw, dy, x);
  }

  /** The same for matrices that share x, one dw each. */
  addLinearsWeight(dws: readonly Tensor[], dy: Tensor, x: Tensor): void {
    const columns = dws.map((dw) => dw.dim(0));
    eachPart(dy, columns, (part, i) => this.addLinearWeight(dws[i] as Tensor, part, x));
  }

  // ---- norms, rotations, SwiGLU ------------------------------------------------------------------

  rmsNorm(gradient: RmsNormGradient): void {
    const { dx, dweight, dy, x, weight, eps, scale = 1, accumulate = false } = gradient;
    this.ops.enqueue('RmsNormGradient', dx, dweight, dy, x, weight, eps, scale, accumulate);
  }

  /**
   * Turns dx [rows, heads, dim] back in place: the gradient of `ops.rope`. `backTable` is
   * `ops.ropeTable` of the negated positions, whose sines are negative: the transposed rotation,
   * attention scale included.
   */
  rope(dx: Tensor, backTable: Tensor): void {
    this.ops.rope(dx, backTable);
  }

  /** [dgate | dup] of `ops.swiglu`, [rows, 2 * width]. */
  swiglu(dy: Tensor, gateUp: Tensor): Tensor {
    const width = dy.dim(1);
    const out = this.ops.activation(dy.dim(0), 2 * width);
    const [dgate, dup] = [out.slice(1, 0, width), out.slice(1, width, 2 * width)];
    const [gate, up] = [gateUp.slice(1, 0, width), gateUp.slice(1, width, 2 * width)];
    this.ops.enqueue('SwigluGradient', dgate, dup, dy, gate, up);
    return out;
  }

  // ---- routed experts ----------------------------------------------------------------------------

  /** The gradient of the router's logits, [rows, experts], from that of the gate weights. */
  route(
    dweights: Tensor,
    logits: Tensor,
    ids: Tensor,
    { scoring, normalize, scale }: Pick<RouterOptions, 'scoring' | 'normalize' | 'scale'>,
  ): Tensor {
    const dlogits = this.ops.activation(logits.dim(0), logits.dim(1));
    const kind = scoring === 'softmax' ? 0 : 1;
    this.ops.enqueue('RouteGradient', dlogits, dweights, logits, ids, kind, normalize, scale);
    return dlogits;
  }

  /** dy W[e] of every slot, [slots, k], in sorted order; rows of no expert are undefined. */
  groupedInput(dy: Tensor, weight: Weight, plan: ExpertPlan): Tensor {
    return this.groupedInputs(dy, [weight], plan);
  }

  /** The same for matrices that share x: dy is [slots, sum of n]. Their sum is made in f32. */
  groupedInputs(dy: Tensor, weights: Joined, plan: ExpertPlan): Tensor {
    const columns = weights.map(({ tensor }) => tensor.dim(1));
    const shape = [dy.dim(0), (weights[0] as Weight).tensor.dim(2)] as const;
    const dx = weights.length === 1 ? this.ops.activation(...shape) : this.ops.float(...shape);
    eachPart(dy, columns, (part, i) => {
      const { tensor } = weights[i] as Weight;
      this.ops.enqueue('GroupedLinearInputGradient', dx, part, tensor, plan.starts, i > 0);
    });
    return dx;
  }

  /** dw[e] += dyᵀ x over the rows of expert e; with `topK`, x is read through the plan's order. */
  addGroupedWeight(dw: Tensor, dy: Tensor, x: Tensor, plan: ExpertPlan, topK?: number): void {
    const order = topK === undefined ? undefined : plan.order;
    this.ops.enqueue('GroupedLinearWeightGradient', dw, dy, x, plan.starts, order, topK ?? 1);
  }

  /** The same for matrices that share x, one dw [experts, n, k] each. */
  addGroupedWeights(
    dws: readonly Tensor[],
    dy: Tensor,
    x: Tensor,
    plan: ExpertPlan,
    topK?: number,
  ): void {
    const columns = dws.map((dw) => dw.dim(1));
    eachPart(dy, columns, (part, i) =>
      this.addGroupedWeight(dws[i] as Tensor, part, x, plan, topK),
    );
  }

  /**
   * From dout f32 [rows, width], the gradient of the residual after `ops.combine`: that of the experts'
   * results and of the gate weights. What zero experts pass through is added to `didentity`, f32.
   */
  combine(
    dout: Tensor,
    y: Tensor,
    plan: ExpertPlan,
    weights: Tensor,
    zero?: { identity: Tensor; didentity: Tensor },
  ): { dy: Tensor; dweights: Tensor } {
    const dy = this.ops.activation(...(y.shape as [number, number]));
    const dweights = this.ops.float(...weights.shape);
    this.ops.enqueue(
      'CombineGradient',
      dy,
      dweights,
      zero?.didentity,
      dout,
      y,
      plan.place,
      weights,
      zero?.identity,
    );
    return { dy, dweights };
  }

  /** sum f32 [rows, width] += what the slots of each token have in y [slots, width]. */
  sumSlots(sum: Tensor, y: Tensor, plan: ExpertPlan): void {
    this.ops.enqueue('SumSlots', sum, y, plan.place);
  }

  // ---- both ends of a model ----------------------------------------------------------------------

  /** dtable[ids[i]] += dout[i]; dtable f32. */
  addGatherRows(dtable: Tensor, dout: Tensor, ids: Tensor): void {
    this.ops.enqueue('GatherRowsGradient', dtable, dout, ids);
  }

  /** Loss of each row, f32 [rows]; `dlogits` is written: act | f32, may be `logits`. */
  crossEntropy(logits: Tensor, targets: Tensor, weights: Tensor, dlogits?: Tensor): Tensor {
    const loss = this.ops.float(logits.dim(0));
    this.ops.enqueue('CrossEntropy', loss, dlogits, logits, targets, weights);
    return loss;
  }

  /** Head and cross-entropy, some rows at a time: the loss of each row, f32 [rows]. */
  headLoss({ x, weight, targets, weights, dx, dweight, chunk }: HeadLoss): Tensor {
    const { ops } = this;
    const rows = x.dim(0);
    const wanted = dx !== undefined || dweight !== undefined;
    const loss = ops.float(rows);
    for (let from = 0; from < rows; from += chunk) {
      const to = Math.min(rows, from + chunk);
      const part = (tensor: Tensor) => tensor.slice(0, from, to);
      ops.arena.scope(() => {
        const logits = ops.linearFloat(part(x), weight);
        const dlogits = wanted ? ops.activation(...logits.shape) : undefined;
        const [lossPart, targetsPart, weightsPart] = [loss, targets, weights].map(part);
        ops.enqueue('CrossEntropy', lossPart, dlogits, logits, targetsPart, weightsPart);
        if (dlogits === undefined) return;
        const { tensor, scale } = weight;
        if (dx) ops.enqueue('LinearInputGradient', part(dx), dlogits, tensor, scale, false);
        if (dweight) this.addLinearWeight(dweight, dlogits, part(x));
      });
    }
    return loss;
  }

  /** weights * mean squared difference of each row, f32 [rows]; `dx` is written: act | f32. */
  squaredDifference(x: Tensor, target: Tensor, weights: Tensor, dx?: Tensor): Tensor {
    const loss = this.ops.float(x.dim(0));
    this.ops.enqueue('SquaredDifference', loss, dx, x, target, weights);
    return loss;
  }

  // ---- elementwise -------------------------------------------------------------------------------

  /** out = a x + b y; out may be x or y. */
  blend(out: Tensor, a: number, x: Tensor, b = 0, y?: Tensor): void {
    this.ops.enqueue('Blend', out, x, y, a, b);
  }

  /** sum += scale x. */
  add(sum: Tensor, x: Tensor, scale = 1): void {
    this.blend(sum, scale, x, 1, sum);
  }

  /** out f32 [1] = sum of x * y. */
  dot(out: Tensor, x: Tensor, y: Tensor): void {
    this.ops.enqueue('Dot', out, x, y);
  }

  // ---- optimiser ---------------------------------------------------------------------------------

  /** f32 [2]: the norm of all gradients together, and the factor that brings it down to `limit`. */
  clipFactor(gradients: readonly Tensor[], limit: number): Tensor {
    const { ops } = this;
    const clip = ops.float(2);
    const squares = ops.float(gradients.length);
    gradients.forEach((gradient, i) => this.dot(squares.slice(0, i, i + 1), gradient, gradient));
    ops.enqueue('ClipFactor', clip, squares, limit);
    return clip;
  }

  adamw(s: AdamwStep): void {
    const { weight, m, v, copy, gradient, clip } = s;
    const numbers = [s.rate, s.beta1, s.beta2, s.eps, s.decay, s.step];
    this.ops.enqueue('Adamw', weight, m, v, copy, gradient, clip, ...numbers);
  }
}

/** Calls `body` with each group of `columns` of x. */
function eachPart(
  x: Tensor,
  columns: readonly number[],
  body: (part: Tensor, index: number) => void,
): void {
  if (columns.length === 1) return body(x, 0);
  let from = 0;
  columns.forEach((count, i) => {
    body(x.slice(1, from, from + count), i);
    from += count;
  });
}
