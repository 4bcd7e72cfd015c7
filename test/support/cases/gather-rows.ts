import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  dtype: 'f32' | 'bf16';
  entries: number;
  width: number;
  rows: number;
  padding?: number;
}

export const gatherRows = defineCases({
  operation: 'gather_rows',
  cases: [
    { name: 'one row of one value', dtype: 'f32', entries: 1, width: 1, rows: 1 },
    { name: 'an odd width', dtype: 'f32', entries: 10, width: 7, rows: 23 },
    { name: 'a bf16 embedding', dtype: 'bf16', entries: 50, width: 6144, rows: 9 },
    { name: 'many rows, in parallel', dtype: 'bf16', entries: 300, width: 257, rows: 700 },
    { name: 'cache rows', dtype: 'f32', entries: 256, width: 576, rows: 40 },
    { name: 'a strided table', dtype: 'f32', entries: 12, width: 33, rows: 20, padding: 5 },
  ] as Case[],
  inputs: (c, random) => ({
    table: host(c.dtype, [c.entries, c.width], random.normals(c.entries * c.width), c.padding),
    ids: host('i32', [c.rows], random.integers(c.rows, c.entries)),
  }),
  run: (ops, { table, ids }) => ({ out: ops.gatherRows(table, ids) }),
  reference: (c, { table, ids }) => ({
    out: Float64Array.from({ length: c.rows * c.width }, (_, i) => {
      return table.values[ids.values[Math.floor(i / c.width)]! * c.width + (i % c.width)]!;
    }),
  }),
  tolerance: () => ({ relative: 0 }),
});
