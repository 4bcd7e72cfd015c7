import { GradientOps } from '../../native/gradient-ops';
import { swigluReference } from '../gradients';
import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  width: number;
  magnitude: number;
}

export const swigluGradient = defineCases({
  operation: 'swiglu_gradient',
  cases: [
    { name: 'one value', rows: 1, width: 1, magnitude: 1 },
    { name: 'an odd width', rows: 5, width: 13, magnitude: 1 },
    { name: 'an expert of LongCat', rows: 6, width: 2048, magnitude: 2 },
    { name: 'many rows', rows: 500, width: 100, magnitude: 3 },
    { name: 'values far out, where exp over- and underflows', rows: 4, width: 65, magnitude: 100 },
  ] as Case[],
  inputs: (c, random, act) => ({
    dy: host(act, [c.rows, c.width], random.normals(c.rows * c.width)),
    fused: host(act, [c.rows, 2 * c.width], random.normals(c.rows * 2 * c.width, c.magnitude)),
  }),
  run: (ops, { dy, fused }) => ({ dfused: new GradientOps(ops).swiglu(dy, fused) }),
  reference: (c, { dy, fused }) => {
    const half = (from: number) =>
      Float64Array.from(dy.values, (_, i) => {
        return fused.values[Math.floor(i / c.width) * 2 * c.width + from + (i % c.width)]!;
      });
    const inputs = { gate: half(0), up: half(c.width) };
    const { gate, up } = swigluReference.gradients(inputs, dy.values, {});
    const dfused = new Float64Array(2 * dy.values.length);
    for (let row = 0; row < c.rows; row++) {
      const part = (of: Float64Array) => of.subarray(row * c.width, (row + 1) * c.width);
      dfused.set(part(gate), row * 2 * c.width);
      dfused.set(part(up), (row * 2 + 1) * c.width);
    }
    return { dfused };
  },
  tolerance: () => ({ relative: 5e-7 }),
});
