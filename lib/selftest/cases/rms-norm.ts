import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  width: number;
  weight: 'f32' | 'bf16';
  eps: number;
  scale: number;
  magnitude?: number;
  padding?: number;
  /** Of the residual stream, which is f32 on every backend. */
  residual?: boolean;
}

/** In float64. */
export function rmsNorm(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  eps: number,
  scale: number,
): Float64Array {
  let squares = 0;
  for (let i = 0; i < weight.length; i++) squares += x[i]! ** 2;
  const factor = scale / Math.sqrt(squares / weight.length + Math.fround(eps));
  return Float64Array.from(weight, (w, i) => factor * w * x[i]!);
}

const longcat = { eps: 1e-5, scale: 1 };

export const rmsNormCases = defineCases({
  operation: 'rms_norm',
  cases: [
    { name: 'a width of one', rows: 3, width: 1, weight: 'f32', ...longcat },
    { name: 'an odd width', rows: 5, width: 37, weight: 'f32', ...longcat },
    { name: 'hidden size', rows: 4, width: 6144, weight: 'bf16', ...longcat },
    { name: 'query latent, a_q = 2', rows: 3, width: 1536, weight: 'bf16', eps: 1e-5, scale: 2 },
    { name: 'many rows', rows: 600, width: 100, weight: 'f32', eps: 1e-6, scale: Math.sqrt(12) },
    {
      name: 'tiny values, where eps rules',
      rows: 3,
      width: 64,
      weight: 'f32',
      ...longcat,
      magnitude: 1e-5,
    },
    { name: 'huge values', rows: 3, width: 500, weight: 'f32', ...longcat, magnitude: 1e15 },
    {
      name: 'the residual stream',
      rows: 7,
      width: 6144,
      weight: 'bf16',
      ...longcat,
      residual: true,
    },
    { name: 'strided rows', rows: 9, width: 130, weight: 'bf16', ...longcat, padding: 6 },
  ] as Case[],
  inputs: (c, random, act) => ({
    x: host(
      c.residual ? 'f32' : act,
      [c.rows, c.width],
      random.normals(c.rows * c.width, c.magnitude ?? 1),
      c.padding,
    ),
    weight: host(c.weight, [c.width], random.normals(c.width)),
  }),
  run: (ops, { x, weight }, c) => ({ out: ops.rmsNorm(x, weight, c.eps, c.scale) }),
  reference: (c, { x, weight }) => {
    const out = new Float64Array(c.rows * c.width);
    for (let i = 0; i < out.length; i += c.width) {
      const row = x.values.subarray(i, i + c.width);
      out.set(rmsNorm(row, weight.values, c.eps, Math.fround(c.scale)), i);
    }
    return { out };
  },
  tolerance: () => ({ relative: 5e-7 }),
});
