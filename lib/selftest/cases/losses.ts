import { GradientOps } from '../../native/gradient-ops';
import type { DType } from '../../native/tensor';
import { crossEntropyReference, squaredDifferenceReference } from '../gradients';
import { host } from '../host-tensor';
import type { Random } from '../random';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  width: number;
  magnitude?: number;
  /** Only the loss. */
  forward?: boolean;
  /** The gradient is f32 and takes the place of the input. */
  inPlace?: boolean;
}

/** Some rows do not count. */
function rowWeights(random: Random, rows: number) {
  const weights = Float32Array.from({ length: rows }, (_, i) =>
    i % 4 === 2 ? 0 : 0.1 + random.uniform(),
  );
  return host('f32', [rows], weights);
}

const ones = (count: number) => new Float64Array(count).fill(1);

export const crossEntropy = defineCases({
  operation: 'cross_entropy',
  cases: [
    { name: 'a vocabulary of one', rows: 2, width: 1 },
    { name: 'an odd vocabulary', rows: 9, width: 1031 },
    { name: 'a large vocabulary', rows: 5, width: 40000 },
    { name: 'a large vocabulary, in place', rows: 3, width: 32008, inPlace: true },
    { name: 'sure of it', rows: 30, width: 500, magnitude: 40 },
    { name: 'only the loss', rows: 6, width: 300, forward: true },
    { name: 'many rows', rows: 700, width: 96, inPlace: true },
  ] as Case[],
  inputs: (c, random) => {
    const weights = rowWeights(random, c.rows);
    // The targets of rows that do not count may be anything.
    const targets = random
      .integers(c.rows, c.width)
      .map((target, row) => (weights.values[row] === 0 ? -1 : target));
    return {
      logits: host('f32', [c.rows, c.width], random.normals(c.rows * c.width, c.magnitude ?? 2)),
      targets: host('i32', [c.rows], targets),
      weights,
    };
  },
  run: (ops, { logits, targets, weights }, c) => {
    const gradients = new GradientOps(ops);
    if (c.forward) return { loss: gradients.crossEntropy(logits, targets, weights) };
    const dlogits = c.inPlace ? logits : ops.activation(c.rows, c.width);
    return { loss: gradients.crossEntropy(logits, targets, weights, dlogits), dlogits };
  },
  reference: (c, { logits, targets, weights }) => {
    const shape = { width: c.width, targets: targets.values, weights: weights.values };
    const inputs = { logits: logits.values };
    const loss = crossEntropyReference.forward(inputs, shape);
    if (c.forward) return { loss };
    const { logits: dlogits } = crossEntropyReference.gradients(inputs, ones(c.rows), shape);
    return { loss, dlogits };
  },
  tolerance: () => ({ relative: 1e-6 }),
});

export const squaredDifference = defineCases({
  operation: 'squared_difference',
  cases: [
    { name: 'one value', rows: 1, width: 1 },
    { name: 'an odd width', rows: 9, width: 37 },
    { name: 'hidden size', rows: 7, width: 6144 },
    { name: 'in place', rows: 40, width: 264, inPlace: true },
    { name: 'only the loss', rows: 600, width: 104, forward: true },
  ] as Case[],
  inputs: (c, random, act) => {
    const type: DType = c.inPlace ? 'f32' : act;
    const normals = () => random.normals(c.rows * c.width);
    return {
      x: host(type, [c.rows, c.width], normals()),
      target: host(act, [c.rows, c.width], normals()),
      weights: rowWeights(random, c.rows),
    };
  },
  run: (ops, { x, target, weights }, c) => {
    const gradients = new GradientOps(ops);
    if (c.forward) return { loss: gradients.squaredDifference(x, target, weights) };
    const dx = c.inPlace ? x : ops.activation(c.rows, c.width);
    return { loss: gradients.squaredDifference(x, target, weights, dx), dx };
  },
  reference: (c, { x, target, weights }) => {
    const shape = { width: c.width, targets: target.values, weights: weights.values };
    const loss = squaredDifferenceReference.forward({ x: x.values }, shape);
    if (c.forward) return { loss };
    const { x: dx } = squaredDifferenceReference.gradients({ x: x.values }, ones(c.rows), shape);
    return { loss, dx };
  },
  tolerance: () => ({ relative: 1e-6 }),
});
