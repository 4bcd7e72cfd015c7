import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  width: number;
  magnitude: number;
}

/** Gate and up are the halves of one matrix, as one fused projection would leave them. */
export const swiglu = defineCases({
  operation: 'swiglu',
  cases: [
    { name: 'one value', rows: 1, width: 1, magnitude: 1 },
    { name: 'an odd width', rows: 5, width: 13, magnitude: 1 },
    { name: 'an expert of LongCat', rows: 6, width: 2048, magnitude: 2 },
    { name: 'a dense layer', rows: 3, width: 1024, magnitude: 1 },
    { name: 'many rows', rows: 500, width: 100, magnitude: 3 },
    { name: 'values far out, where exp over- and underflows', rows: 4, width: 65, magnitude: 100 },
  ] as Case[],
  inputs: (c, random, act) => ({
    fused: host(act, [c.rows, 2 * c.width], random.normals(c.rows * 2 * c.width, c.magnitude)),
  }),
  run: (ops, { fused }) => ({ out: ops.swiglu(fused) }),
  reference: (c, { fused }) => {
    const out = new Float64Array(c.rows * c.width);
    for (let i = 0; i < out.length; i++) {
      const at = Math.floor(i / c.width) * 2 * c.width + (i % c.width);
      const gate = fused.values[at]!;
      out[i] = (gate / (1 + Math.exp(-gate))) * fused.values[at + c.width]!;
    }
    return { out };
  },
  tolerance: () => ({ relative: 3e-7 }),
});
