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

/** The matrices of a router and its experts; stacks are [experts, out, in]. */
export interface ExpertsWeights {
  classifier: Weight;
  bias: Tensor | undefined;
  gateUp: Joined;
  down: Weight;
}

export function takeExperts(
  weights: WeightSource,
  prefix: string,
  router: RouterNames,
  { hidden, width, experts, zeroExperts }: ExpertsShape,
): ExpertsWeights {
  const choices = experts + zeroExperts;
  const names = (projection: string) =>
    Array.from({ length: experts }, (_, e) => `${prefix}experts.${e}.${projection}_proj.weight`);
  return {
    classifier: weights.exactMatrix(prefix + router.classifier, choices, hidden),
    bias:
      router.bias === undefined ? undefined : weights.floatVector(prefix + router.bias, choices),
    gateUp: weights.joinedStack([names('gate'), names('up')], width, hidden),
    down: weights.stack(names('down'), hidden, width),
  };
}

/**
 * Routed experts: sum over the chosen e of w_e * Expert_e(h); a zero expert returns h
 * (model-spec sections 1.4 and 4.2). The router runs in fp32.
 */
export class Experts {
  constructor(
    private readonly taken: ExpertsWeights,
    private readonly shape: ExpertsShape,
  ) {}

  /** Adds the result to `residual`. h and residual: [rows, hidden]. */
  addTo(residual: Tensor, ops: Ops, h: Tensor): void {
    const { experts, zeroExperts, router } = this.shape;
    const { classifier, bias, gateUp, down } = this.taken;
    const { ids, weights } = ops.route(ops.linearFloat(h, classifier), bias, router);
    const plan = ops.expertPlan(ids, experts);
    const inner = ops.swiglu(ops.groupedLinears(h, gateUp, plan, router.topK));
    const y = ops.groupedLinear(inner, down, plan);
    ops.combine(residual, y, plan, weights, zeroExperts > 0 ? h : undefined);
  }
}
