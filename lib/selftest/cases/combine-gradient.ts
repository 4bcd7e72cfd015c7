import { GradientOps } from '../../native/gradient-ops';
import { combineReference } from '../gradients';
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

const cases: Case[] = [
  { name: 'one slot', rows: 1, topK: 1, experts: 1, zeroExperts: 0, width: 1 },
  { name: 'no zero experts', rows: 9, topK: 3, experts: 8, zeroExperts: 0, width: 100 },
  { name: 'LongCat, one token', rows: 1, topK: 12, experts: 16, zeroExperts: 8, width: 6144 },
  { name: 'zero experts', rows: 12, topK: 12, experts: 16, zeroExperts: 8, width: 1031 },
  { name: 'mostly zero experts', rows: 5, topK: 2, experts: 1, zeroExperts: 30, width: 64 },
];

/** `y` with NaN in the rows that no slot uses. */
function slotsOf(c: Case, random: Parameters<typeof randomIds>[0] & { normals: Normals }) {
  const slots = c.rows * c.topK;
  const ids = randomIds(random, c.rows, c.topK, c.experts + c.zeroExperts);
  const { order, place, starts } = planOf(ids, c.experts);
  return {
    used: order.length,
    y: random.normals(slots * c.width).fill(NaN, order.length * c.width),
    plan: {
      order: host('i32', [order.length], order),
      place: host('i32', [slots], place),
      starts: host('i32', [c.experts + 1], starts),
    },
  };
}
type Normals = (count: number) => Float32Array;

export const combineGradient = defineCases({
  operation: 'combine_gradient',
  cases,
  inputs: (c, random, act) => {
    const { y, plan } = slotsOf(c, random);
    const full = (dtype: 'f32' | typeof act) =>
      host(dtype, [c.rows, c.width], random.normals(c.rows * c.width));
    return {
      dout: full('f32'),
      y: host(act, [c.rows * c.topK, c.width], y),
      ...plan,
      weights: host('f32', [c.rows, c.topK], random.normals(c.rows * c.topK)),
      identity: c.zeroExperts > 0 ? full(act) : undefined,
      didentity: c.zeroExperts > 0 ? full('f32') : undefined,
    };
  },
  run: (ops, { dout, y, order, place, starts, weights, identity, didentity }) => {
    const zero = identity && didentity && { identity, didentity };
    const plan = { order, place, starts };
    const gradients = new GradientOps(ops).combine(dout, y, plan, weights, zero);
    return { ...gradients, ...(didentity && { didentity }) };
  },
  reference: (c, { dout, y, order, place, weights, identity, didentity }) => {
    const inputs = {
      out: dout.values,
      y: y.values,
      weights: weights.values,
      identity: identity?.values ?? [],
    };
    const shape = { topK: c.topK, width: c.width, place: place.values };
    const gradients = combineReference.gradients(inputs, dout.values, shape);
    return {
      dy: gradients.y.subarray(0, order.values.length * c.width),
      dweights: gradients.weights,
      ...(didentity && {
        didentity: gradients.identity.map((value, i) => value + didentity.values[i]!),
      }),
    };
  },
  tolerance: () => ({ relative: 1e-6 }),
});

export const sumSlots = defineCases({
  operation: 'sum_slots',
  cases,
  inputs: (c, random, act) => {
    const { y, plan } = slotsOf(c, random);
    return {
      sum: host('f32', [c.rows, c.width], random.normals(c.rows * c.width)),
      y: host(c.rows % 2 === 0 ? 'f32' : act, [c.rows * c.topK, c.width], y),
      ...plan,
    };
  },
  run: (ops, { sum, y, order, place, starts }) => {
    new GradientOps(ops).sumSlots(sum, y, { order, place, starts });
    return { sum };
  },
  reference: (c, { sum, y, place }) => {
    const weights = Float64Array.from(place.values, (at) => (at < 0 ? 0 : 1));
    const inputs = {
      out: sum.values,
      y: y.values,
      weights,
      identity: new Float64Array(sum.values.length),
    };
    const shape = { topK: c.topK, width: c.width, place: place.values };
    return { sum: combineReference.forward(inputs, shape) };
  },
  tolerance: () => ({ relative: 3e-7 }),
});
