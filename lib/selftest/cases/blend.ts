import { GradientOps } from '../../native/gradient-ops';
import { dotProduct } from '../differences';
import { host } from '../host-tensor';
import { contiguous } from './linear-gradient';
import { defineCases } from './operation';

interface BlendCase {
  name: string;
  shape: readonly number[];
  a: number;
  b: number;
  /** out is x, in f32, and y an activation; else out is an activation and x and y are f32. */
  inPlace?: boolean;
  padding?: number;
}

export const blend = defineCases({
  operation: 'blend',
  cases: [
    { name: 'one value', shape: [1], a: 2, b: 3 },
    { name: 'a long vector', shape: [100_003], a: 0.25, b: 0.75 },
    { name: 'a sum into f32', shape: [9, 264], a: 1, b: 1, inPlace: true },
    { name: 'strided rows', shape: [30, 37], a: -1, b: 1, padding: 3 },
    { name: 'a scale alone', shape: [70, 128], a: 0.5, b: 0 },
  ] as BlendCase[],
  inputs: (c, random, act) => {
    const count = c.shape.reduce((a, b) => a * b);
    return {
      x: host('f32', c.shape, random.normals(count), c.padding),
      y:
        c.b === 0
          ? undefined
          : host(c.inPlace ? act : 'f32', c.shape, random.normals(count), c.padding),
    };
  },
  run: (ops, { x, y }, c) => {
    const out = c.inPlace ? x : ops.activation(...c.shape);
    new GradientOps(ops).blend(out, c.a, x, c.b, y);
    return { out: contiguous(ops, out) };
  },
  reference: (c, { x, y }) => ({
    out: Float64Array.from(x.values, (value, i) => c.a * value + c.b * (y?.values[i] ?? 0)),
  }),
  tolerance: () => ({ relative: 3e-7, inBf16: { relative: 4e-3 } }),
});

interface DotCase {
  name: string;
  count: number;
  /** y is x. */
  square?: boolean;
}

export const dot = defineCases({
  operation: 'dot',
  cases: [
    { name: 'one value', count: 1 },
    { name: 'an odd count', count: 4099 },
    { name: 'many', count: 200_001, square: true },
  ] as DotCase[],
  inputs: (c, random, act) => ({
    x: host('f32', [c.count], random.normals(c.count)),
    y: c.square ? undefined : host(act, [c.count], random.normals(c.count)),
  }),
  run: (ops, { x, y }) => {
    const out = ops.float(1);
    new GradientOps(ops).dot(out, x, y ?? x);
    return { out };
  },
  reference: (_, { x, y }) => ({
    out: Float64Array.of(dotProduct(x.values, (y ?? x).values)),
  }),
  // Of a sum whose terms cancel: relative to the norms of x and y.
  tolerance: (c) => ({ relative: c.square ? 1e-6 : Infinity, absolute: 1e-6 * c.count }),
});
