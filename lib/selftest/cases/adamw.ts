import { GradientOps } from '../../native/gradient-ops';
import { host } from '../host-tensor';
import { defineCases } from './operation';

interface AdamwCase {
  name: string;
  count: number;
  step: number;
  decay: number;
  /** The factor in `clip`; undefined: no clip. */
  clip?: number;
  copy?: boolean;
}

const rate = 1e-2;
const beta1 = 0.9;
const beta2 = 0.95;
const eps = 1e-8;

/** One step in float64, of values as they are. */
function stepOf(
  [weight, m, v, gradient]: readonly [number, number, number, number],
  { step, decay, clip = 1 }: AdamwCase,
): [number, number, number] {
  const [b1, b2, lr] = [beta1, beta2, rate].map(Math.fround) as [number, number, number];
  const g = Math.fround(clip) * gradient;
  const newM = b1 * m + (1 - b1) * g;
  const newV = b2 * v + (1 - b2) * g * g;
  const ratio = newM / (1 - b1 ** step) / (Math.sqrt(newV / (1 - b2 ** step)) + Math.fround(eps));
  return [weight - lr * (ratio + Math.fround(decay) * weight), newM, newV];
}

export const adamw = defineCases({
  operation: 'adamw',
  cases: [
    { name: 'one value', count: 1, step: 1, decay: 0 },
    { name: 'the first step', count: 1003, step: 1, decay: 0.1, copy: true },
    { name: 'a late step, clipped', count: 20_001, step: 1234, decay: 0.1, clip: 0.3, copy: true },
    { name: 'a gradient that is not finite', count: 300, step: 3, decay: 0.1, clip: NaN },
  ] as AdamwCase[],
  inputs: (c, random, act) => {
    const of = (values: Float32Array) => host('f32', [c.count], values);
    return {
      weight: of(random.normals(c.count)),
      m: of(random.normals(c.count, c.step === 1 ? 0 : 0.1)),
      v: of(random.normals(c.count, c.step === 1 ? 0 : 0.1).map((x) => x * x)),
      gradient: of(random.normals(c.count)),
      copy: c.copy ? host(act, [c.count], new Float32Array(c.count).fill(NaN)) : undefined,
      clip: c.clip === undefined ? undefined : host('f32', [2], [9, c.clip]),
    };
  },
  run: (ops, { weight, m, v, gradient, copy, clip }, c) => {
    const numbers = { rate, beta1, beta2, eps, decay: c.decay, step: c.step };
    new GradientOps(ops).adamw({ weight, m, v, gradient, copy, clip, ...numbers });
    return { weight, m, v, ...(copy && { copy }) };
  },
  reference: (c, { weight, m, v, gradient, copy }) => {
    const out = { weight, m, v };
    const [w2, m2, v2] = Object.values(out).map((tensor) => Float64Array.from(tensor.values));
    if (!Number.isNaN(c.clip))
      for (let i = 0; i < c.count; i++)
        [w2![i], m2![i], v2![i]] = stepOf(
          [weight.values[i]!, m.values[i]!, v.values[i]!, gradient.values[i]!],
          c,
        );
    return { weight: w2!, m: m2!, v: v2!, ...(copy && { copy: w2! }) };
  },
  tolerance: (_, output) => ({
    relative: 3e-7,
    ...(output === 'copy' ? { inBf16: { relative: 4e-3 } } : { inBf16: { relative: 3e-7 } }),
  }),
});

interface ClipCase {
  name: string;
  squares: readonly number[];
  limit: number;
}

export const clipFactor = defineCases({
  operation: 'clip_factor',
  cases: [
    { name: 'within the limit', squares: [0.25, 0.11], limit: 1 },
    { name: 'above the limit', squares: [9, 16], limit: 1 },
    { name: 'no limit', squares: [1e12], limit: 0 },
    { name: 'no gradient', squares: [0, 0, 0], limit: 1 },
    { name: 'many pieces', squares: Array.from({ length: 1000 }, (_, i) => i), limit: 2 },
  ] as ClipCase[],
  inputs: (c) => ({ squares: host('f32', [c.squares.length], c.squares) }),
  run: (ops, { squares }, c) => {
    const clip = ops.float(2);
    ops.enqueue('ClipFactor', clip, squares, c.limit);
    return { clip };
  },
  reference: (c, { squares }) => {
    const norm = Math.sqrt([...squares.values].reduce((sum, value) => sum + value, 0));
    return { clip: Float64Array.of(norm, c.limit > 0 && norm > c.limit ? c.limit / norm : 1) };
  },
  tolerance: () => ({ relative: 1e-6 }),
});
