import { host, type HostTensor } from '../host-tensor';
import { defineCases } from './operation';

interface TableCase {
  name: string;
  dim: number;
  base: number;
  positions: readonly number[];
  attentionScale: number;
  exactAngles: boolean;
}

/** Inverse frequencies as the two fp32 rows that rope_table takes. */
export function inverseFrequencies(dim: number, base: number): HostTensor {
  const exact = Array.from({ length: dim / 2 }, (_, p) => base ** ((-2 * p) / dim));
  const low = exact.map((value) => value - Math.fround(value));
  return host('f32', [2, dim / 2], [...exact, ...low]);
}

/** Interleaved cosines and sines, in float64 but for an angle rounded to fp32 when that is asked. */
export function ropeAngles(
  positions: ArrayLike<number>,
  frequencies: HostTensor,
  exactAngles: boolean,
): Float64Array {
  const pairs = frequencies.shape[1]!;
  const [high, low] = [frequencies.values.subarray(0, pairs), frequencies.values.subarray(pairs)];
  const table = new Float64Array(positions.length * pairs * 2);
  for (let t = 0; t < positions.length; t++)
    for (let p = 0; p < pairs; p++) {
      const rounded = Math.fround(Math.fround(positions[t]!) * high[p]!);
      const angle = exactAngles ? positions[t]! * (high[p]! + low[p]!) : rounded;
      table[(t * pairs + p) * 2] = Math.cos(angle);
      table[(t * pairs + p) * 2 + 1] = Math.sin(angle);
    }
  return table;
}

const farPositions = [0, 1, 2, 127, 128, 1023, 4095, 131071, 777777, 1048575];

export const ropeTable = defineCases({
  operation: 'rope_table',
  cases: [
    {
      name: 'one pair',
      dim: 2,
      base: 10000,
      positions: [3],
      attentionScale: 1,
      exactAngles: false,
    },
    {
      name: 'up to 1M',
      dim: 64,
      base: 1e7,
      positions: farPositions,
      attentionScale: 1,
      exactAngles: false,
    },
    {
      name: 'up to 1M, exact angles',
      dim: 64,
      base: 1e7,
      positions: farPositions,
      attentionScale: 1,
      exactAngles: true,
    },
    {
      name: 'an attention scale',
      dim: 32,
      base: 10000,
      positions: [5, 4, 9],
      attentionScale: 1.25,
      exactAngles: false,
    },
    {
      name: 'many rows',
      dim: 64,
      base: 5e6,
      positions: Array.from({ length: 300 }, (_, i) => 3 * i),
      attentionScale: 1,
      exactAngles: false,
    },
  ] as TableCase[],
  inputs: (c) => ({
    positions: host('i32', [c.positions.length], c.positions),
    frequencies: inverseFrequencies(c.dim, c.base),
  }),
  run: (ops, { positions, frequencies }, c) => ({
    table: ops.ropeTable(positions, frequencies, c.attentionScale, c.exactAngles),
  }),
  reference: (c, { positions, frequencies }) => ({
    table: ropeAngles(positions.values, frequencies, c.exactAngles).map(
      (x) => x * c.attentionScale,
    ),
  }),
  tolerance: () => ({ relative: 1e-7, absolute: 2e-7 }),
});

interface RopeCase {
  name: string;
  rows: number;
  heads: number;
  nope: number;
  dim: number;
}

/** Turns interleaved pairs of x by the (cos, sin) pairs of `table`. */
export function rotate(x: ArrayLike<number>, table: ArrayLike<number>): Float64Array {
  const out = new Float64Array(table.length);
  for (let p = 0; p < table.length; p += 2) {
    out[p] = x[p]! * table[p]! - x[p + 1]! * table[p + 1]!;
    out[p + 1] = x[p + 1]! * table[p]! + x[p]! * table[p + 1]!;
  }
  return out;
}

/** Rotates the last `dim` values of each head of a query; the rest must stay as it is. */
export const rope = defineCases({
  operation: 'rope',
  cases: [
    { name: 'one pair', rows: 1, heads: 1, nope: 0, dim: 2 },
    { name: 'whole heads', rows: 3, heads: 5, nope: 0, dim: 64 },
    { name: 'the rope part of LongCat heads', rows: 7, heads: 64, nope: 128, dim: 64 },
    { name: 'odd sizes', rows: 200, heads: 3, nope: 5, dim: 6 },
  ] as RopeCase[],
  inputs: (c, random, act) => ({
    q: host(
      act,
      [c.rows, c.heads, c.nope + c.dim],
      random.normals(c.rows * c.heads * (c.nope + c.dim)),
    ),
    table: host('f32', [c.rows, c.dim], random.normals(c.rows * c.dim)),
  }),
  run: (ops, { q, table }, c) => {
    ops.rope(q.slice(2, c.nope, c.nope + c.dim), table);
    return { q };
  },
  reference: (c, { q, table }) => {
    const out = Float64Array.from(q.values);
    const width = c.nope + c.dim;
    for (let i = 0; i < c.rows * c.heads; i++) {
      const row = Math.floor(i / c.heads);
      const angles = table.values.subarray(row * c.dim, (row + 1) * c.dim);
      const begin = i * width + c.nope;
      out.set(rotate(q.values.subarray(begin, begin + c.dim), angles), begin);
    }
    return { q: out };
  },
  tolerance: () => ({ relative: 2e-7 }),
});
