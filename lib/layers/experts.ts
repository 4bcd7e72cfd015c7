import type { WeightSource } from '../checkpoint/weights';
import type { Joined, Ops, RouterOptions, Weight } from '../native/ops';
import type { Tensor } from '../native/tensor';

export interface ExpertsShape {
  hidden: number;
  /** Width of one expert's SwiGLU. */
  width: number;
  experts: number;
  /** Experts past the real ones that return their input. */
  zeroExperts: number;
  router: RouterOptions;
}

/** Where a family's checkpoints keep the router. */
export interface RouterNames {
  classifier: string;
  /** undefined: the router has no correction bias. */
  bias: string | undefined;
}

/**
 * Routed experts: sum over the chosen e of w_e * Expert_e(h); a zero expert returns h
 * (model-spec sections 1.4 and 4.2). The router runs in fp32.
 */
export class Experts {
  private readonly classifier: Weight;
  private readonly bias: Tensor | undefined;
  private readonly gateUp: Joined;
  private readonly down: Weight;

  constructor(
    weights: WeightSource,
    prefix: string,
    router: RouterNames,
    private readonly shape: ExpertsShape,
  ) {
    const { hidden, width, experts, zeroExperts } = shape;
    const choices = experts + zeroExperts;
    const names = (projection: string) =>
      Array.from({ length: experts }, (_, e) => `${prefix}experts.${e}.${projection}_proj.weight`);
    this.classifier = weights.exactMatrix(prefix + router.classifier, choices, hidden);
    this.bias =
      router.bias === undefined ? undefined : weights.floatVector(prefix + router.bias, choices);
    this.gateUp = weights.joinedStack([names('gate'), names('up')], width, hidden);
    this.down = weights.stack(names('down'), hidden, width);
  }

  /** Adds the result to `residual`. h and residual: [rows, hidden]. */
  addTo(residual: Tensor, ops: Ops, h: Tensor): void {
    const { experts, zeroExperts, router } = this.shape;
    const { ids, weights } = ops.route(ops.linearFloat(h, this.classifier), this.bias, router);
    const plan = ops.expertPlan(ids, experts);
    const inner = ops.swiglu(ops.groupedLinears(h, this.gateUp, plan, router.topK));
    const y = ops.groupedLinear(inner, this.down, plan);
    ops.combine(residual, y, plan, weights, zeroExperts > 0 ? h : undefined);
  }
}
