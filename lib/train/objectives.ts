import type { Tensor } from '../native/tensor';
import type { Labels } from './batch';
import type { TokenHead } from './layers/token-head';
import type { Pass } from './pass';

/** Bytes of logits that exist at a time. */
const logitBytes = 256 * 2 ** 20;

/**
 * Cross-entropy of the next token in the labelled rows: weighted, f32 [labelled]. x is the stream
 * behind the last layer; its gradient is added to d, f32 of its shape, if that is given.
 */
export function nextTokenLoss(
  pass: Pass,
  head: TokenHead,
  x: Tensor,
  { rows, targets, weights, count }: Labels,
  d?: Tensor,
): Tensor {
  const { ops, grads } = pass;
  const loss = ops.float(count);
  ops.arena.scope(() => {
    const chosen = ops.gatherFloatRows(x, rows);
    const normed = head.finish(pass, chosen);
    const dNormed = d && ops.float(...normed.shape);
    const weight = head.projection;
    const dweight = d && pass.gradientOf(weight.tensor);
    const chunk = Math.max(1, Math.floor(logitBytes / (4 * weight.tensor.dim(0))));
    const each = grads.headLoss({
      ...{ x: normed, weight, targets, weights, chunk },
      ...{ dx: dNormed, dweight },
    });
    ops.cast(loss, each);
    if (d && dNormed) finishBackward(pass, head, chosen, dNormed, rows, d);
  });
  return loss;
}

/** The final hidden states of the labelled rows, [labelled, hidden]: what a student is to reach. */
export function finalStates(
  pass: Pass,
  head: TokenHead,
  x: Tensor,
  into: Tensor,
  rows: Tensor,
): void {
  const { ops } = pass;
  ops.arena.scope(() => ops.cast(into, head.finish(pass, ops.gatherFloatRows(x, rows))));
}

/**
 * Mean squared difference of the final hidden states from those of a teacher, in the labelled rows:
 * weighted, f32 [labelled]. x and d as above.
 */
export function distillationLoss(
  pass: Pass,
  head: TokenHead,
  x: Tensor,
  target: Tensor,
  { rows, weights, count }: Labels,
  d?: Tensor,
): Tensor {
  const { ops, grads } = pass;
  const loss = ops.float(count);
  ops.arena.scope(() => {
    const chosen = ops.gatherFloatRows(x, rows);
    const normed = head.finish(pass, chosen);
    const dNormed = d && ops.float(...normed.shape);
    ops.cast(loss, grads.squaredDifference(normed, target, weights, dNormed));
    if (d && dNormed) finishBackward(pass, head, chosen, dNormed, rows, d);
  });
  return loss;
}

/** Through the final norm, and to the rows that were chosen. */
function finishBackward(
  pass: Pass,
  head: TokenHead,
  chosen: Tensor,
  dNormed: Tensor,
  rows: Tensor,
  d: Tensor,
): void {
  const dChosen = pass.ops.float(...chosen.shape);
  head.finishBackward(pass, dChosen, dNormed, chosen);
  pass.grads.addGatherRows(d, dChosen, rows);
}
