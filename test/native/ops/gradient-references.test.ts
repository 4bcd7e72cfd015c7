import { differenceErrors } from '../../../lib/selftest/differences';
import {
  combineReference,
  crossEntropyReference,
  gatherRowsReference,
  groupedLinearReference,
  linearShape,
  rmsNormReference,
  ropeReference,
  routeReference,
  squaredDifferenceReference,
  swigluReference,
  type Differentiable,
} from '../../../lib/selftest/gradients';
import { Random } from '../../../lib/selftest/random';

/** A reference at one place: shape, sizes of its inputs, size of its result. */
interface Place {
  errors: () => Record<string, number>;
}

function place<Name extends string, Shape>(
  name: string,
  reference: Differentiable<Name, Shape>,
  shape: Shape,
  sizes: Record<Name, number>,
): [string, Place] {
  const random = new Random(name);
  const normals = (count: number) => Float64Array.from(random.normals(count));
  const inputs = Object.fromEntries(
    Object.entries<number>(sizes).map(([input, size]) => [input, normals(size)]),
  ) as Record<Name, Float64Array>;
  const dout = normals(reference.forward(inputs, shape).length);
  return [name, { errors: () => differenceErrors(reference, inputs, dout, shape) }];
}

const grouped = {
  n: 3,
  k: 4,
  rows: [0, 0, 2, 2, 2].map((expert, i) => ({ expert, source: (i * 2) % 3 })),
};
const routed = { experts: 7, topK: 3, ids: [4, 0, 6, 1, 2, 3], scale: 2.5 };
const lossWeights = [0.5, 0, 2];

describe('float64 references agree with central differences', () => {
  test.each([
    place('linear', groupedLinearReference, linearShape(3, 4, 5), { x: 15, weight: 20 }),
    place('grouped_linear', groupedLinearReference, grouped, { x: 12, weight: 36 }),
    place('rms_norm', rmsNormReference, { eps: 1e-3, scale: 2 }, { x: 18, weight: 6 }),
    place('rope', ropeReference, { table: new Random('table').normals(12) }, { x: 12 }),
    place('swiglu', swigluReference, {}, { gate: 9, up: 9 }),
    ...(['softmax', 'sigmoid'] as const).flatMap((scoring) =>
      [false, true].map((normalize) =>
        place(
          `route, ${scoring}${normalize ? ', normalised' : ''}`,
          routeReference,
          { ...routed, scoring, normalize },
          { logits: 14 },
        ),
      ),
    ),
    place(
      'combine',
      combineReference,
      { topK: 3, width: 4, place: [2, -1, 0, 1, 3, -1] },
      { out: 8, y: 16, weights: 6, identity: 8 },
    ),
    place('gather_rows', gatherRowsReference, { width: 3, ids: [1, 4, 1, 0] }, { table: 15 }),
    place(
      'cross_entropy',
      crossEntropyReference,
      { width: 6, targets: [5, 99, 0], weights: lossWeights },
      { logits: 18 },
    ),
    place(
      'squared_difference',
      squaredDifferenceReference,
      { width: 5, targets: new Random('target').normals(15), weights: lossWeights },
      { x: 15 },
    ),
  ])('%s', (_, { errors }) => {
    for (const [input, error] of Object.entries(errors()))
      expect({ input, far: error > 1e-8 ? error : 0 }).toEqual({ input, far: 0 });
  });
});
