import { host, type HostTensor } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  topK: number;
  experts: number;
  zeroExperts: number;
}

/** The plan in order of its slots, with nothing behind starts[experts]. */
export function planOf(ids: HostTensor, experts: number) {
  const slots = Int32Array.from(ids.values, (_, slot) => slot);
  const isReal = (slot: number) => ids.values[slot]! < experts;
  const order = slots.filter(isReal).sort((a, b) => ids.values[a]! - ids.values[b]! || a - b);
  const place = slots.map((slot) => order.indexOf(slot));
  const starts = Int32Array.from({ length: experts + 1 }, (_, expert) => {
    return order.filter((slot) => ids.values[slot]! < expert).length;
  });
  return { order, place, starts };
}

/** Distinct experts a row, as a router gives them. */
export function randomIds(
  random: { permutation(count: number): Int32Array },
  rows: number,
  topK: number,
  experts: number,
): HostTensor {
  const ids = Array.from({ length: rows }, () => [...random.permutation(experts).slice(0, topK)]);
  return host('i32', [rows, topK], ids.flat());
}

export const expertPlan = defineCases({
  operation: 'expert_plan',
  cases: [
    { name: 'one slot', rows: 1, topK: 1, experts: 1, zeroExperts: 0 },
    { name: 'no zero experts', rows: 30, topK: 3, experts: 8, zeroExperts: 0 },
    { name: 'LongCat, one token', rows: 1, topK: 12, experts: 512, zeroExperts: 256 },
    { name: 'LongCat, many tokens', rows: 60, topK: 12, experts: 512, zeroExperts: 256 },
    { name: 'LongCat, a prompt', rows: 1000, topK: 12, experts: 512, zeroExperts: 256 },
    { name: 'mostly zero experts', rows: 9, topK: 2, experts: 1, zeroExperts: 30 },
  ] as Case[],
  inputs: (c, random) => ({ ids: randomIds(random, c.rows, c.topK, c.experts + c.zeroExperts) }),
  run: (ops, { ids }, c) => ({ ...ops.expertPlan(ids, c.experts) }),
  reference: (c, { ids }) => planOf(ids, c.experts),
  tolerance: () => ({ relative: 0 }),
});
