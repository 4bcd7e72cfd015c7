import { host } from '../host-tensor';
import { defineCases } from './operation';
import { rotate } from './rope';

interface Case {
  name: string;
  rows: number;
  heads: number;
  nope: number;
  latent: number;
  rope: number;
  /** Values of the same heads' W_UV, which lie behind W_UK in kv_b_proj. */
  value: number;
  weight: 'f32' | 'bf16';
}

const longcat = { nope: 128, latent: 512, rope: 64, value: 128, weight: 'bf16' } as const;

/** The weight is a view of kv_b_proj, [heads, nope + value, latent], as the model makes it. */
export const absorbQuery = defineCases({
  operation: 'absorb_query',
  cases: [
    { name: 'smallest', rows: 1, heads: 1, nope: 1, latent: 1, rope: 2, value: 0, weight: 'f32' },
    { name: 'odd sizes', rows: 5, heads: 3, nope: 7, latent: 13, rope: 6, value: 4, weight: 'f32' },
    { name: 'LongCat, one row', rows: 1, heads: 5, ...longcat },
    { name: 'LongCat, 17 rows', rows: 17, heads: 4, ...longcat },
    { name: 'LongCat, 64 rows', rows: 64, heads: 3, ...longcat },
    { name: 'LongCat, 70 rows', rows: 70, heads: 2, ...longcat },
    { name: 'GLM, 33 rows', rows: 33, heads: 2, ...longcat, nope: 192, value: 256 },
    { name: 'a latent of 200', rows: 9, heads: 3, ...longcat, latent: 200 },
  ] as Case[],
  inputs: (c, random, act) => {
    const rows = c.nope + c.value;
    // W_UV is NaN: it must not be read.
    const values = random
      .normals(c.heads * rows * c.latent, 1 / Math.sqrt(c.nope))
      .map((value, i) => (Math.floor(i / c.latent) % rows < c.nope ? value : NaN));
    const width = c.heads * (c.nope + c.rope);
    return {
      q: host(act, [c.rows, c.heads, c.nope + c.rope], random.normals(c.rows * width)),
      weight: host(c.weight, [c.heads, rows, c.latent], values),
      table: host('f32', [c.rows, c.rope], random.normals(c.rows * c.rope)),
    };
  },
  run: (ops, { q, weight, table }, c) => {
    const strides = [(c.nope + c.value) * c.latent, 1, c.latent];
    const view = weight.view(c.weight, [c.heads, c.latent, c.nope], strides, 0);
    return { out: ops.absorbQuery(q, view, table) };
  },
  reference: (c, { q, weight, table }) => {
    const [width, outWidth] = [c.nope + c.rope, c.latent + c.rope];
    const perHead = (c.nope + c.value) * c.latent;
    const out = new Float64Array(c.rows * c.heads * outWidth);
    for (let i = 0; i < c.rows * c.heads; i++) {
      const x = q.values.subarray(i * width, (i + 1) * width);
      const row = Math.floor(i / c.heads);
      for (let k = 0; k < c.nope; k++) {
        const from = (i % c.heads) * perHead + k * c.latent;
        for (let n = 0; n < c.latent; n++)
          out[i * outWidth + n]! += weight.values[from + n]! * x[k]!;
      }
      const angles = table.values.subarray(row * c.rope, (row + 1) * c.rope);
      out.set(rotate(x.subarray(c.nope), angles), i * outWidth + c.latent);
    }
    return { out };
  },
  tolerance: () => ({ relative: 5e-7 }),
});
