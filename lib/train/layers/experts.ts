import type { ExpertsShape, ExpertsWeights } from '../../layers/experts';
import type { ExpertPlan, Joined } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import { addWeightGradients, type Pass } from '../pass';

export interface ExpertsRecord {
  h: Tensor; // [rows, hidden]
  logits: Tensor; // f32 [rows, experts and zero experts]
  ids: Tensor; // i32 [rows, topK]
  weights: Tensor; // f32 [rows, topK]
  plan: ExpertPlan;
  gateUp: Tensor; // [slots, 2 * width]
  inner: Tensor; // [slots, width]
  y: Tensor; // [slots, hidden]
}

/**
 * Routed experts: sum over the chosen e of w_e * Expert_e(h); a zero expert returns h. Which experts
 * are chosen is held constant; their weights w carry the gradient to the router.
 */
export class Experts {
  constructor(
    private readonly taken: ExpertsWeights,
    private readonly shape: ExpertsShape,
  ) {}

  /** Adds the result to `residual`. */
  forward({ ops }: Pass, residual: Tensor, h: Tensor): ExpertsRecord {
    const { experts, zeroExperts, router } = this.shape;
    const logits = ops.linearFloat(h, this.taken.classifier);
    const { ids, weights } = ops.route(logits, this.taken.bias, router);
    const plan = ops.expertPlan(ids, experts);
    const gateUp = ops.groupedLinears(h, this.taken.gateUp, plan, router.topK);
    const inner = ops.swiglu(gateUp);
    const y = ops.groupedLinear(inner, this.taken.down, plan);
    ops.combine(residual, y, plan, weights, zeroExperts > 0 ? h : undefined);
    return { h, logits, ids, weights, plan, gateUp, inner, y };
  }

  /** Adds the gradient of h to dh, f32. */
  backward(pass: Pass, record: ExpertsRecord, dResidual: Tensor, dh: Tensor): void {
    const { grads } = pass;
    const { zeroExperts, router } = this.shape;
    const { h, logits, ids, weights, plan, gateUp, inner, y } = record;
    if (this.taken.bias !== undefined) pass.routed?.(this.taken.bias, plan.starts);
    const zero = zeroExperts > 0 ? { identity: h, didentity: dh } : undefined;
    const { dy, dweights } = grads.combine(dResidual, y, plan, weights, zero);
    this.addStackGradients(pass, [this.taken.down], dy, inner, plan);
    const dGateUp = grads.swiglu(grads.groupedInput(dy, this.taken.down, plan), gateUp);
    this.addStackGradients(pass, this.taken.gateUp, dGateUp, h, plan, router.topK);
    grads.sumSlots(dh, grads.groupedInputs(dGateUp, this.taken.gateUp, plan), plan);
    const dLogits = grads.route(dweights, logits, ids, router);
    addWeightGradients(pass, [this.taken.classifier], dLogits, h);
    grads.addLinearInput(dh, dLogits, this.taken.classifier);
  }

  /** dw[e] += dyᵀ x of the rows of each expert, for stacks that are not frozen. */
  private addStackGradients(
    pass: Pass,
    stacks: Joined,
    dy: Tensor,
    x: Tensor,
    plan: ExpertPlan,
    topK?: number,
  ): void {
    let from = 0;
    for (const { tensor } of stacks) {
      const to = from + tensor.dim(1);
      const dw = pass.gradientOf(tensor);
      if (dw !== undefined) pass.grads.addGroupedWeight(dw, dy.slice(1, from, to), x, plan, topK);
      from = to;
    }
  }
}
