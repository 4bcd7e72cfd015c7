import { GradientOps } from '../../native/gradient-ops';
import { rmsNormReference } from '../gradients';
import { host } from '../host-tensor';
import { contiguous } from './linear-gradient';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  width: number;
  weight: 'f32' | 'bf16';
  eps?: number;
  scale?: number;
  magnitude?: number;
  padding?: number;
  /** x and dx are those of the residual stream: f32, added to. */
  residual?: boolean;
  /** No gradient of the weight. */
  frozen?: boolean;
}

export const rmsNormGradient = defineCases({
  operation: 'rms_norm_gradient',
  cases: [
    { name: 'a width of one', rows: 3, width: 1, weight: 'f32', eps: 1 },
    { name: 'an odd width', rows: 5, width: 37, weight: 'f32' },
    { name: 'query latent, a_q = 2', rows: 3, width: 1536, weight: 'bf16', scale: 2 },
    { name: 'the residual stream', rows: 7, width: 6144, weight: 'bf16', residual: true },
    { name: 'many rows', rows: 1100, width: 100, weight: 'f32', residual: true },
    { name: 'frozen weights', rows: 40, width: 264, weight: 'bf16', frozen: true },
    { name: 'tiny values, where eps rules', rows: 3, width: 64, weight: 'f32', magnitude: 1e-4 },
    { name: 'strided rows', rows: 9, width: 130, weight: 'bf16', padding: 6 },
  ] as Case[],
  inputs: (c, random, act) => {
    const type = c.residual ? 'f32' : act;
    const normals = (scale: number) => random.normals(c.rows * c.width, scale);
    return {
      dx: host(type, [c.rows, c.width], normals(c.residual ? 1 : NaN), c.padding),
      dweight: c.frozen ? undefined : host('f32', [c.width], random.normals(c.width)),
      dy: host(act, [c.rows, c.width], normals(1), c.padding),
      x: host(type, [c.rows, c.width], normals(c.magnitude ?? 1), c.padding),
      weight: host(c.weight, [c.width], random.normals(c.width)),
    };
  },
  run: (ops, { dx, dweight, dy, x, weight }, c) => {
    const { eps = 1e-5, scale = 1, residual: accumulate = false } = c;
    new GradientOps(ops).rmsNorm({ dx, dweight, dy, x, weight, eps, scale, accumulate });
    return { dx: contiguous(ops, dx), ...(dweight && { dweight }) };
  },
  reference: (c, { dx, dweight, dy, x, weight }) => {
    const shape = { eps: Math.fround(c.eps ?? 1e-5), scale: Math.fround(c.scale ?? 1) };
    const inputs = { x: x.values, weight: weight.values };
    const gradients = rmsNormReference.gradients(inputs, dy.values, shape);
    return {
      dx: gradients.x.map((value, i) => value + (c.residual ? dx.values[i]! : 0)),
      ...(dweight && {
        dweight: gradients.weight.map((value, i) => value + dweight.values[i]!),
      }),
    };
  },
  tolerance: () => ({ relative: 1e-6 }),
});
