import { GradientOps } from '../../native/gradient-ops';
import { groupedLinearReference } from '../gradients';
import { host, type HostTensor } from '../host-tensor';
import type { Random } from '../random';
import { planOf, randomIds } from './expert-plan';
import { randomWeight } from './linear';
import { defineCases } from './operation';

interface Size {
  rows: number;
  topK: number;
  experts: number;
  zeroExperts: number;
  n: number;
  k: number;
}

/** The plan of random routes as host tensors, and how many slots it sorts. */
function planTensors(random: Random, c: Size) {
  const slots = c.rows * c.topK;
  const ids = randomIds(random, c.rows, c.topK, c.experts + c.zeroExperts);
  const { order, place, starts } = planOf(ids, c.experts);
  const padded = Int32Array.from({ length: slots }, (_, i) => order[i] ?? -7);
  return {
    used: order.length,
    plan: {
      order: host('i32', [slots], padded),
      place: host('i32', [slots], place),
      starts: host('i32', [c.experts + 1], starts),
    },
  };
}

/** The sorted slots' experts, and the rows of x that they read. */
function rowsOf(starts: HostTensor, order: HostTensor | undefined, topK: number) {
  return Array.from(starts.values.slice(1)).flatMap((end, expert) => {
    const begin = starts.values[expert]!;
    return Array.from({ length: end - begin }, (_, i) => {
      const slot = begin + i;
      return { expert, source: order ? Math.floor(order.values[slot]! / topK) : slot };
    });
  });
}

const sizes: Size[] = [
  { rows: 1, topK: 1, experts: 1, zeroExperts: 0, n: 1, k: 1 },
  { rows: 1, topK: 12, experts: 16, zeroExperts: 8, n: 70, k: 130 },
  { rows: 20, topK: 3, experts: 8, zeroExperts: 4, n: 257, k: 33 },
  { rows: 60, topK: 2, experts: 3, zeroExperts: 1, n: 136, k: 40 },
  { rows: 3, topK: 2, experts: 2, zeroExperts: 50, n: 8, k: 8 },
  { rows: 130, topK: 3, experts: 5, zeroExperts: 2, n: 136, k: 144 },
];

function nameOf(size: Size): string {
  return `${size.rows} x ${size.topK} slots, ${size.experts} + ${size.zeroExperts} experts [${size.n}, ${size.k}]`;
}

interface InputCase extends Size {
  name: string;
  weight: 'f32' | 'bf16';
  accumulate: boolean;
}

export const groupedLinearInputGradient = defineCases({
  operation: 'grouped_linear_input_gradient',
  cases: (['f32', 'bf16'] as const).flatMap((weight) =>
    sizes.map((size, i): InputCase => {
      const accumulate = i % 2 === 1;
      const name = `${weight}, ${nameOf(size)}${accumulate ? ', accumulated in f32' : ''}`;
      return { name, weight, accumulate, ...size };
    }),
  ),
  inputs: (c, random, act) => {
    const { used, plan } = planTensors(random, c);
    const slots = c.rows * c.topK;
    const dy = random.normals(slots * c.n).fill(NaN, used * c.n);
    const dx = random.normals(slots * c.k, c.accumulate ? 1 : NaN);
    return {
      dx: host(c.accumulate ? 'f32' : act, [slots, c.k], dx),
      dy: host(act, [slots, c.n], dy),
      starts: plan.starts,
      weight: randomWeight(random, c.weight, [c.experts, c.n, c.k]).weight,
    };
  },
  run: (ops, { dx, dy, starts, weight }, c) => {
    ops.enqueue('GroupedLinearInputGradient', dx, dy, weight, starts, c.accumulate);
    return { dx };
  },
  reference: (c, { dx, dy, starts, weight }) => {
    const rows = rowsOf(starts, undefined, 1);
    const inputs = { x: new Float64Array(rows.length * c.k), weight: weight.values };
    const { x } = groupedLinearReference.gradients(inputs, dy.values, { n: c.n, k: c.k, rows });
    return { dx: x.map((value, i) => value + (c.accumulate ? dx.values[i]! : 0)) };
  },
  tolerance: () => ({ relative: 1e-6 }),
});

interface WeightCase extends Size {
  name: string;
  /** Rows of x are tokens, read through the plan's order; else they are the sorted slots. */
  ordered: boolean;
}

export const groupedLinearWeightGradient = defineCases({
  operation: 'grouped_linear_weight_gradient',
  cases: sizes.flatMap((size) =>
    [true, false].map((ordered): WeightCase => {
      const name = `${nameOf(size)}, ${ordered ? 'tokens' : 'slots'}`;
      return { name, ordered, ...size };
    }),
  ),
  inputs: (c, random, act) => {
    const { used, plan } = planTensors(random, c);
    const slots = c.rows * c.topK;
    const rows = c.ordered ? c.rows : slots;
    const x = random.normals(rows * c.k);
    if (!c.ordered) x.fill(NaN, used * c.k);
    return {
      dw: host('f32', [c.experts, c.n, c.k], random.normals(c.experts * c.n * c.k)),
      dy: host(act, [slots, c.n], random.normals(slots * c.n).fill(NaN, used * c.n)),
      x: host(act, [rows, c.k], x),
      ...plan,
    };
  },
  run: (ops, { dw, dy, x, order, place, starts }, c) => {
    const topK = c.ordered ? c.topK : undefined;
    new GradientOps(ops).addGroupedWeight(dw, dy, x, { order, place, starts }, topK);
    return { dw };
  },
  reference: (c, { dw, dy, x, order, starts }) => {
    const rows = rowsOf(starts, c.ordered ? order : undefined, c.topK);
    const inputs = { x: x.values, weight: new Float64Array(dw.values.length) };
    const { weight } = groupedLinearReference.gradients(inputs, dy.values, {
      n: c.n,
      k: c.k,
      rows,
    });
    return { dw: weight.map((value, i) => value + dw.values[i]!) };
  },
  tolerance: () => ({ relative: 1e-6 }),
});
