import { GradientOps } from '../../native/gradient-ops';
import type { Ops } from '../../native/ops';
import type { Tensor } from '../../native/tensor';
import { groupedLinearReference, linearShape } from '../gradients';
import { host } from '../host-tensor';
import { dequantised, randomWeight, type WeightType } from './linear';
import { defineCases } from './operation';

/** The tensor itself, or what a strided one holds. */
export function contiguous(ops: Ops, tensor: Tensor): Tensor {
  if (tensor.isContiguous) return tensor;
  const out = ops.arena.allocate(tensor.dtype, tensor.shape);
  ops.cast(out, tensor);
  return out;
}

interface Size {
  rows: number;
  n: number;
  k: number;
  padding?: number;
}

interface InputCase extends Size {
  name: string;
  weight: WeightType;
  accumulate?: boolean;
  /** dx is f32 whatever the type of activations. */
  float?: boolean;
}

const inputSizes: Omit<InputCase, 'name' | 'weight'>[] = [
  { rows: 1, n: 1, k: 1 },
  { rows: 1, n: 257, k: 300 },
  { rows: 3, n: 513, k: 130, padding: 5 },
  { rows: 5, n: 64, k: 200, accumulate: true },
  { rows: 17, n: 128, k: 256, float: true },
  { rows: 100, n: 272, k: 136, accumulate: true, float: true, padding: 8 },
  { rows: 130, n: 600, k: 264, padding: 16 },
  { rows: 197, n: 33, k: 61, accumulate: true },
];

export const linearInputGradient = defineCases({
  operation: 'linear_input_gradient',
  cases: (['f32', 'bf16', 'f8e4m3'] as const).flatMap((weight): InputCase[] =>
    inputSizes.map((size) => {
      const marks = [size.accumulate ? ', accumulated' : '', size.float ? ', in f32' : ''];
      const name = `${weight} [${size.n}, ${size.k}], ${size.rows} rows${marks.join('')}`;
      return { name, weight, ...size };
    }),
  ),
  inputs: (c, random, act) => ({
    dx: host(
      c.float ? 'f32' : act,
      [c.rows, c.k],
      random.normals(c.rows * c.k, c.accumulate ? 1 : NaN),
      c.padding,
    ),
    dy: host(act, [c.rows, c.n], random.normals(c.rows * c.n), c.padding),
    ...randomWeight(random, c.weight, [c.n, c.k]),
  }),
  run: (ops, { dx, dy, weight, scale }, c) => {
    ops.enqueue('LinearInputGradient', dx, dy, weight, scale, c.accumulate ?? false);
    return { dx: contiguous(ops, dx) };
  },
  reference: (c, { dx, dy, weight, scale }) => {
    const inputs = { x: new Float64Array(c.rows * c.k), weight: dequantised(weight, scale) };
    const gradients = groupedLinearReference.gradients(
      inputs,
      dy.values,
      linearShape(c.rows, c.n, c.k),
    );
    return { dx: gradients.x.map((value, i) => value + (c.accumulate ? dx.values[i]! : 0)) };
  },
  tolerance: () => ({ relative: 1e-6 }),
});

const weightSizes: Size[] = [
  { rows: 1, n: 1, k: 1 },
  { rows: 1, n: 40, k: 300 },
  { rows: 37, n: 129, k: 65, padding: 3 },
  { rows: 300, n: 64, k: 136, padding: 8 },
  { rows: 1000, n: 136, k: 72 },
  { rows: 530, n: 200, k: 264 },
];

export const linearWeightGradient = defineCases({
  operation: 'linear_weight_gradient',
  cases: weightSizes.map((size) => ({
    name: `[${size.n}, ${size.k}], ${size.rows} rows${size.padding ? ', strided' : ''}`,
    ...size,
  })),
  inputs: (c: Size & { name: string }, random, act) => ({
    dw: host('f32', [c.n, c.k], random.normals(c.n * c.k)),
    dy: host(act, [c.rows, c.n], random.normals(c.rows * c.n), c.padding),
    x: host(act, [c.rows, c.k], random.normals(c.rows * c.k), c.padding),
  }),
  run: (ops, { dw, dy, x }) => {
    new GradientOps(ops).addLinearWeight(dw, dy, x);
    return { dw };
  },
  reference: (c, { dw, dy, x }) => {
    const inputs = { x: x.values, weight: new Float64Array(c.n * c.k) };
    const gradients = groupedLinearReference.gradients(
      inputs,
      dy.values,
      linearShape(c.rows, c.n, c.k),
    );
    return { dw: gradients.weight.map((value, i) => value + dw.values[i]!) };
  },
  tolerance: () => ({ relative: 1e-6 }),
});
