import { host } from '../host-tensor';
import { asLatentCache, hostLatentCache, latentRows, type RowSizes } from './latent-cache';
import { defineCases } from './operation';

interface Case {
  name: string;
  /** Or an FP8 latent cache with rows of these sizes. */
  dtype: 'f32' | 'bf16' | RowSizes;
  entries: number;
  width: number;
  rows: number;
  padding?: number;
}

const isDense = (dtype: Case['dtype']): dtype is 'f32' | 'bf16' => typeof dtype === 'string';

export const gatherRows = defineCases({
  operation: 'gather_rows',
  cases: [
    { name: 'one row of one value', dtype: 'f32', entries: 1, width: 1, rows: 1 },
    { name: 'an odd width', dtype: 'f32', entries: 10, width: 7, rows: 23 },
    { name: 'a bf16 embedding', dtype: 'bf16', entries: 50, width: 6144, rows: 9 },
    { name: 'many rows, in parallel', dtype: 'bf16', entries: 300, width: 257, rows: 700 },
    { name: 'cache rows', dtype: 'f32', entries: 256, width: 576, rows: 40 },
    { name: 'a strided table', dtype: 'f32', entries: 12, width: 33, rows: 20, padding: 5 },
    {
      name: 'FP8 cache rows',
      dtype: { latent: 512, rope: 64 },
      entries: 384,
      width: 576,
      rows: 300,
    },
    {
      name: 'FP8 cache rows of odd sizes',
      dtype: { latent: 37, rope: 6 },
      entries: 256,
      width: 43,
      rows: 40,
    },
  ] as Case[],
  inputs: (c, random) => {
    const values = random.normals(c.entries * c.width);
    return {
      table: isDense(c.dtype)
        ? host(c.dtype, [c.entries, c.width], values, c.padding)
        : hostLatentCache(values, c.dtype),
      ids: host('i32', [c.rows], random.integers(c.rows, c.entries)),
    };
  },
  run: (ops, { table, ids }, { dtype, width }) => {
    const rows = isDense(dtype) ? table : asLatentCache(table, dtype);
    return { out: ops.gatherRows(rows, ids, width) };
  },
  reference: (c, { table, ids }) => {
    const values = isDense(c.dtype) ? table.values : latentRows(table, c.dtype);
    return {
      out: Float64Array.from({ length: c.rows * c.width }, (_, i) => {
        return values[ids.values[Math.floor(i / c.width)]! * c.width + (i % c.width)]!;
      }),
    };
  },
  tolerance: () => ({ relative: 0 }),
});
