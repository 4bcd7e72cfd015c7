import { GradientOps } from '../../native/gradient-ops';
import { routeReference } from '../gradients';
import { host } from '../host-tensor';
import { randomIds } from './expert-plan';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  experts: number;
  topK: number;
  scoring: 'softmax' | 'sigmoid';
  normalize: boolean;
  scale: number;
}

const longcat = { experts: 768, topK: 12, scoring: 'softmax', normalize: false, scale: 6 } as const;
const deepseekV3 = {
  ...{ experts: 256, topK: 8, normalize: true, scale: 2.5 },
  scoring: 'sigmoid',
} as const;

export const routeGradient = defineCases({
  operation: 'route_gradient',
  cases: [
    { name: 'one expert', ...longcat, rows: 1, experts: 1, topK: 1, scoring: 'sigmoid' },
    { name: 'every expert', ...longcat, rows: 3, experts: 5, topK: 5 },
    { name: 'LongCat', ...longcat, rows: 40 },
    { name: 'LongCat with normalised weights', ...longcat, normalize: true, rows: 7 },
    { name: 'DeepSeek V3', ...deepseekV3, rows: 20 },
    { name: 'DeepSeek V3 without normalisation', ...deepseekV3, normalize: false, rows: 5 },
    { name: 'many rows', ...longcat, experts: 33, topK: 4, rows: 700 },
  ] as Case[],
  inputs: (c, random) => ({
    dweights: host('f32', [c.rows, c.topK], random.normals(c.rows * c.topK)),
    logits: host('f32', [c.rows, c.experts], random.normals(c.rows * c.experts, 1.5)),
    ids: randomIds(random, c.rows, c.topK, c.experts),
  }),
  run: (ops, { dweights, logits, ids }, c) => ({
    dlogits: new GradientOps(ops).route(dweights, logits, ids, c),
  }),
  reference: (c, { dweights, logits, ids }) => {
    const shape = { ...c, ids: ids.values, scale: Math.fround(c.scale) };
    const inputs = { logits: logits.values };
    return { dlogits: routeReference.gradients(inputs, dweights.values, shape).logits };
  },
  // dlogits is bf16 where activations are, although no input is.
  tolerance: () => ({ relative: 1e-6 }),
});
