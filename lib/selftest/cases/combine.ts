import { host } from '../host-tensor';
import { planOf, randomIds } from './expert-plan';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  topK: number;
  experts: number;
  zeroExperts: number;
  width: number;
}

export const combine = defineCases({
  operation: 'combine',
  cases: [
    { name: 'one slot', rows: 1, topK: 1, experts: 1, zeroExperts: 0, width: 1 },
    {
      name: 'no zero experts, no identity',
      rows: 9,
      topK: 3,
      experts: 8,
      zeroExperts: 0,
      width: 100,
    },
    { name: 'LongCat, one token', rows: 1, topK: 12, experts: 16, zeroExperts: 8, width: 6144 },
    { name: 'zero experts', rows: 40, topK: 12, experts: 16, zeroExperts: 8, width: 1031 },
    { name: 'mostly zero experts', rows: 5, topK: 2, experts: 1, zeroExperts: 30, width: 64 },
  ] as Case[],
  inputs: (c, random, act) => {
    const slots = c.rows * c.topK;
    const { order, place } = planOf(
      randomIds(random, c.rows, c.topK, c.experts + c.zeroExperts),
      c.experts,
    );
    // Rows of y that no slot uses are what grouped_linear leaves alone: NaN.
    const y = random.normals(slots * c.width).fill(NaN, order.length * c.width);
    return {
      out: host('f32', [c.rows, c.width], random.normals(c.rows * c.width)),
      y: host(act, [slots, c.width], y),
      order: host(
        'i32',
        [slots],
        Int32Array.from({ length: slots }, (_, i) => order[i] ?? -1),
      ),
      place: host('i32', [slots], place),
      starts: host('i32', [1], [0]),
      weights: host('f32', [c.rows, c.topK], random.normals(slots)),
      identity:
        c.zeroExperts > 0
          ? host(act, [c.rows, c.width], random.normals(c.rows * c.width))
          : undefined,
    };
  },
  run: (ops, { out, y, order, place, starts, weights, identity }) => {
    ops.combine(out, y, { order, place, starts }, weights, identity);
    return { out };
  },
  reference: (c, { out, y, place, weights, identity }) => {
    const sum = Float64Array.from(out.values);
    for (let slot = 0; slot < place.values.length; slot++) {
      const row = Math.floor(slot / c.topK);
      const at = place.values[slot]!;
      const source =
        at < 0 ? identity!.values.subarray(row * c.width) : y.values.subarray(at * c.width);
      for (let i = 0; i < c.width; i++)
        sum[row * c.width + i]! += weights.values[slot]! * source[i]!;
    }
    return { out: sum };
  },
  tolerance: () => ({ relative: 3e-7 }),
});
