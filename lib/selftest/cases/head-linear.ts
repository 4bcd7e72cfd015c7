import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  heads: number;
  n: number;
  k: number;
  weight: 'f32' | 'bf16';
  /** The weight is stored as [heads, k, n] and read as its transpose. */
  transposed?: boolean;
  /** Rows of the same stored head that belong to another matrix, as in kv_b_proj. */
  neighbours?: number;
  /** Between the heads of x; the rope part, in a query of LongCat. */
  padding?: number;
  /** The output is f32 whatever the type of activations. */
  float?: boolean;
}

export const headLinear = defineCases({
  operation: 'head_linear',
  cases: [
    { name: 'smallest', rows: 1, heads: 1, n: 1, k: 1, weight: 'f32' },
    { name: 'odd sizes', rows: 5, heads: 3, n: 13, k: 7, weight: 'f32' },
    {
      name: 'odd sizes, transposed',
      rows: 5,
      heads: 3,
      n: 13,
      k: 7,
      weight: 'f32',
      transposed: true,
    },
    {
      name: 'W_UK of LongCat, one row',
      padding: 64,
      rows: 1,
      heads: 5,
      n: 512,
      k: 128,
      weight: 'bf16',
      transposed: true,
      neighbours: 128,
    },
    {
      name: 'W_UK of LongCat, many rows',
      padding: 64,
      rows: 19,
      heads: 4,
      n: 512,
      k: 128,
      weight: 'bf16',
      transposed: true,
      neighbours: 128,
    },
    {
      name: 'W_UV of LongCat, one row',
      padding: 0,
      rows: 1,
      heads: 5,
      n: 128,
      k: 512,
      weight: 'bf16',
      neighbours: 128,
    },
    {
      name: 'W_UV of LongCat, 130 rows into f32',
      rows: 130,
      heads: 2,
      n: 128,
      k: 512,
      weight: 'bf16',
      neighbours: 128,
      padding: 0,
      float: true,
    },
    {
      name: 'W_UV of LongCat, many rows',
      padding: 0,
      rows: 19,
      heads: 4,
      n: 128,
      k: 512,
      weight: 'bf16',
      neighbours: 128,
    },
    {
      name: 'many rows in f32',
      rows: 130,
      heads: 2,
      n: 40,
      k: 70,
      weight: 'f32',
      transposed: true,
      neighbours: 3,
    },
  ] as Case[],
  inputs: (c, random, act) => {
    const [stored, contiguous] = c.transposed ? [c.k, c.n] : [c.n, c.k];
    const rows = stored + (c.neighbours ?? 0);
    // The neighbours are NaN: they must not be read.
    const values = random
      .normals(c.heads * rows * contiguous, 1 / Math.sqrt(c.k))
      .map((value, i) => {
        return Math.floor(i / contiguous) % rows < stored ? value : NaN;
      });
    return {
      x: host(act, [c.rows, c.heads, c.k], random.normals(c.rows * c.heads * c.k), c.padding ?? 3),
      weight: host(c.weight, [c.heads, rows, contiguous], values),
    };
  },
  run: (ops, { x, weight }, c) => {
    const stride = weight.strides[0]!;
    const strides = c.transposed ? [stride, 1, c.n] : [stride, c.k, 1];
    const out = c.float ? ops.float(c.rows, c.heads, c.n) : ops.activation(c.rows, c.heads, c.n);
    ops.headLinear(out, x, weight.view(c.weight, [c.heads, c.n, c.k], strides, 0));
    return { out };
  },
  reference: (c, { x, weight }) => {
    const [toN, toK] = c.transposed ? [1, c.n] : [c.k, 1];
    const perHead = weight.shape[1]! * weight.shape[2]!;
    const out = new Float64Array(c.rows * c.heads * c.n);
    for (let i = 0; i < out.length; i++) {
      const [row, j] = [Math.floor(i / c.n), i % c.n];
      const at = (row % c.heads) * perHead + j * toN;
      let sum = 0;
      for (let k = 0; k < c.k; k++) sum += weight.values[at + k * toK]! * x.values[row * c.k + k]!;
      out[i] = sum;
    }
    return { out };
  },
  tolerance: () => ({ relative: 5e-7 }),
});
