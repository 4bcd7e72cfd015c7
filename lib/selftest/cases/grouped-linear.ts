import { host } from '../host-tensor';
import { planOf, randomIds } from './expert-plan';
import { asMultiplied, dequantised, dot, randomWeight, type WeightType } from './linear';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  topK: number;
  experts: number;
  zeroExperts: number;
  n: number;
  k: number;
  weight: WeightType;
  /** Rows of x are tokens, read through the plan's order; else they are the sorted slots. */
  ordered: boolean;
}

const sizes: Omit<Case, 'name' | 'weight'>[] = [
  { rows: 1, topK: 1, experts: 1, zeroExperts: 0, n: 1, k: 1, ordered: false },
  { rows: 1, topK: 12, experts: 16, zeroExperts: 8, n: 70, k: 130, ordered: true },
  { rows: 20, topK: 3, experts: 8, zeroExperts: 4, n: 33, k: 257, ordered: true },
  { rows: 20, topK: 3, experts: 8, zeroExperts: 4, n: 257, k: 33, ordered: false },
  { rows: 60, topK: 2, experts: 3, zeroExperts: 1, n: 40, k: 136, ordered: true },
  { rows: 1, topK: 8, experts: 40, zeroExperts: 9, n: 200, k: 512, ordered: true },
  { rows: 33, topK: 4, experts: 16, zeroExperts: 8, n: 136, k: 272, ordered: true },
  { rows: 40, topK: 3, experts: 6, zeroExperts: 1, n: 65, k: 144, ordered: false },
  { rows: 3, topK: 2, experts: 2, zeroExperts: 50, n: 8, k: 8, ordered: true },
  { rows: 130, topK: 3, experts: 5, zeroExperts: 2, n: 136, k: 272, ordered: true },
  { rows: 300, topK: 2, experts: 4, zeroExperts: 0, n: 257, k: 144, ordered: false },
];

export const groupedLinear = defineCases({
  operation: 'grouped_linear',
  cases: (['f32', 'bf16', 'f8e4m3'] as const).flatMap((weight): Case[] =>
    sizes.map((size) => {
      const name = `${weight}, ${size.rows} x ${size.topK} slots, ${size.experts} + ${size.zeroExperts} experts [${size.n}, ${size.k}]`;
      return { name, weight, ...size };
    }),
  ),
  inputs: (c, random, act) => {
    const slots = c.rows * c.topK;
    const { order, place, starts } = planOf(
      randomIds(random, c.rows, c.topK, c.experts + c.zeroExperts),
      c.experts,
    );
    const rows = c.ordered ? c.rows : slots;
    const x = random.normals(rows * c.k);
    if (!c.ordered) x.fill(NaN, order.length * c.k);
    return {
      x: host(act, [rows, c.k], x),
      order: host(
        'i32',
        [slots],
        Int32Array.from({ length: slots }, (_, i) => order[i] ?? -7),
      ),
      place: host('i32', [slots], place),
      starts: host('i32', [c.experts + 1], starts),
      ...randomWeight(random, c.weight, [c.experts, c.n, c.k]),
    };
  },
  run: (ops, { x, order, place, starts, weight, scale }, c) => {
    const matrices = scale === undefined ? { tensor: weight } : { tensor: weight, scale };
    const topK = c.ordered ? c.topK : undefined;
    return { out: ops.groupedLinear(x, matrices, { order, place, starts }, topK) };
  },
  reference: (c, { x, order, starts, weight, scale }) => {
    const w = dequantised(weight, scale);
    const values = asMultiplied(x, scale);
    const out = new Float64Array(starts.values[c.experts]! * c.n);
    for (let expert = 0; expert < c.experts; expert++)
      for (let i = starts.values[expert]!; i < starts.values[expert + 1]!; i++) {
        const source = c.ordered ? Math.floor(order.values[i]! / c.topK) : i;
        for (let j = 0; j < c.n; j++)
          out[i * c.n + j] = dot(values, source * c.k, w, (expert * c.n + j) * c.k, c.k);
      }
    return { out };
  },
  tolerance: () => ({ relative: 5e-7 }),
});
