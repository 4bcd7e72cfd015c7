import { decodeF8, encodeF8, host, type HostTensor } from '../host-tensor';
import type { Random } from '../random';
import { defineCases } from './operation';

export type WeightType = 'f32' | 'bf16' | 'f8e4m3';

const scaleBlock = 128;

/** A weight whose products have a size of about one, with block scales if it is f8e4m3. */
export function randomWeight(
  random: Random,
  dtype: WeightType,
  shape: readonly number[],
): { weight: HostTensor; scale: HostTensor | undefined } {
  const [n, k] = [shape.at(-2)!, shape.at(-1)!];
  const count = shape.reduce((a, b) => a * b);
  const magnitude = dtype === 'f8e4m3' ? 100 : 1 / Math.sqrt(k);
  const weight = host(dtype, shape, random.normals(count, magnitude));
  if (dtype !== 'f8e4m3') return { weight, scale: undefined };
  const blocks = [...shape.slice(0, -2), Math.ceil(n / scaleBlock), Math.ceil(k / scaleBlock)];
  const scales = Float32Array.from({ length: blocks.reduce((a, b) => a * b) }, () => {
    return (0.5 + random.uniform()) / (100 * Math.sqrt(k));
  });
  return { weight, scale: host('f32', blocks, scales) };
}

/** The matrices of a weight, dequantised, in float64. */
export function dequantised(weight: HostTensor, scale: HostTensor | undefined): Float64Array {
  const values = Float64Array.from(weight.values);
  if (scale === undefined) return values;
  const [n, k] = [weight.shape.at(-2)!, weight.shape.at(-1)!];
  const [scaleRows, scaleColumns] = [scale.shape.at(-2)!, scale.shape.at(-1)!];
  return values.map((value, i) => {
    const matrix = Math.floor(i / (n * k));
    const row = Math.floor((Math.floor(i / k) % n) / scaleBlock);
    const column = Math.floor((i % k) / scaleBlock);
    return value * scale.values[(matrix * scaleRows + row) * scaleColumns + column]!;
  });
}

/**
 * x as a product sees it. With f8e4m3 weights, where activations are bf16 and bulk copies can read the
 * rows, it is quantised to f8e4m3 with an fp32 scale for each row and 128 columns, the largest value
 * becoming 448.
 */
export function asMultiplied(x: HostTensor, scale: HostTensor | undefined): Float64Array {
  const values = Float64Array.from(x.values);
  const k = x.shape.at(-1)!;
  if (scale === undefined || x.dtype !== 'bf16' || k % 16 !== 0) return values;
  for (let row = 0; row < values.length; row += k)
    for (let begin = row; begin < row + k; begin += scaleBlock) {
      const block = values.subarray(begin, Math.min(row + k, begin + scaleBlock));
      const largest = block.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const factor = Math.fround(448 / largest);
      const scale = Math.fround(largest / 448);
      if (largest > 0)
        block.forEach((value, i) => {
          block[i] = decodeF8(encodeF8(Math.fround(value * factor))) * scale;
        });
    }
  return values;
}

/** x . w over `count` values. */
export function dot(
  x: ArrayLike<number>,
  xAt: number,
  w: ArrayLike<number>,
  wAt: number,
  count: number,
): number {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += x[xAt + i]! * w[wAt + i]!;
  return sum;
}

interface Case {
  name: string;
  rows: number;
  n: number;
  k: number;
  weight: WeightType;
  accumulate?: boolean;
  padding?: number;
  /** The output is f32 whatever the type of activations. */
  float?: boolean;
}

const sizes: Omit<Case, 'name' | 'weight'>[] = [
  { rows: 1, n: 1, k: 1 },
  { rows: 1, n: 300, k: 257 },
  { rows: 2, n: 64, k: 128, accumulate: true },
  { rows: 3, n: 130, k: 513, padding: 5 },
  { rows: 4, n: 5, k: 7 },
  { rows: 7, n: 129, k: 1030, accumulate: true, padding: 3 },
  { rows: 3, n: 300, k: 257, float: true },
  { rows: 40, n: 768, k: 512, float: true },
  { rows: 1, n: 576, k: 2048 },
  { rows: 5, n: 200, k: 1408, accumulate: true, padding: 16 },
  { rows: 9, n: 65, k: 1040, float: true },
  { rows: 24, n: 130, k: 528 },
  { rows: 64, n: 1000, k: 256, accumulate: true },
  { rows: 16, n: 256, k: 1024, accumulate: true },
  { rows: 100, n: 200, k: 136 },
  { rows: 65, n: 200, k: 400 },
  { rows: 130, n: 136, k: 512, accumulate: true, float: true, padding: 16 },
  { rows: 300, n: 257, k: 272, accumulate: true },
  { rows: 197, n: 33, k: 600, accumulate: true },
];

export const linear = defineCases({
  operation: 'linear',
  cases: (['f32', 'bf16', 'f8e4m3'] as const).flatMap((weight): Case[] =>
    sizes.map((size) => {
      const marks = [
        size.accumulate ? ', accumulated' : '',
        size.padding ? ', strided' : '',
        size.float ? ', into f32' : '',
      ].join('');
      return {
        name: `${weight} [${size.n}, ${size.k}], ${size.rows} rows${marks}`,
        weight,
        ...size,
      };
    }),
  ),
  inputs: (c, random, act) => ({
    x: host(act, [c.rows, c.k], random.normals(c.rows * c.k), c.padding),
    sum: c.accumulate
      ? host(c.float ? 'f32' : act, [c.rows, c.n], random.normals(c.rows * c.n))
      : undefined,
    ...randomWeight(random, c.weight, [c.n, c.k]),
  }),
  run: (ops, { x, sum, weight, scale }, c) => {
    const matrix = scale === undefined ? { tensor: weight } : { tensor: weight, scale };
    if (sum === undefined) {
      return { out: c.float ? ops.linearFloat(x, matrix) : ops.linear(x, matrix) };
    }
    ops.addLinear(sum, x, matrix);
    return { out: sum };
  },
  reference: (c, { x, sum, weight, scale }) => {
    const w = dequantised(weight, scale);
    const values = asMultiplied(x, scale);
    const out = Float64Array.from({ length: c.rows * c.n }, (_, i) => {
      return dot(values, Math.floor(i / c.n) * c.k, w, (i % c.n) * c.k, c.k);
    });
    return { out: sum === undefined ? out : out.map((value, i) => value + sum.values[i]!) };
  },
  // Weights in f32 are for sums that rounding must not spoil: router logits.
  tolerance: (c) => ({
    relative: 5e-7,
    ...(c.float && c.weight === 'f32' ? { inBf16: { relative: 1e-5 } } : {}),
  }),
});
