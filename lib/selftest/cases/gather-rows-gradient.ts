import { GradientOps } from '../../native/gradient-ops';
import { gatherRowsReference } from '../gradients';
import { host } from '../host-tensor';
import { defineCases } from './operation';

interface Case {
  name: string;
  rows: number;
  entries: number;
  width: number;
  float: boolean;
}

export const gatherRowsGradient = defineCases({
  operation: 'gather_rows_gradient',
  cases: [
    { name: 'one row', rows: 1, entries: 1, width: 1, float: true },
    { name: 'few tokens of a large table', rows: 9, entries: 3000, width: 40, float: true },
    { name: 'every token many times', rows: 1500, entries: 7, width: 72, float: true },
    { name: 'one token', rows: 700, entries: 1, width: 130, float: false },
    { name: 'rows of activations', rows: 300, entries: 90, width: 264, float: false },
  ] as Case[],
  inputs: (c, random, act) => ({
    dtable: host('f32', [c.entries, c.width], random.normals(c.entries * c.width)),
    dout: host(c.float ? 'f32' : act, [c.rows, c.width], random.normals(c.rows * c.width)),
    ids: host('i32', [c.rows], random.integers(c.rows, c.entries)),
  }),
  run: (ops, { dtable, dout, ids }) => {
    new GradientOps(ops).addGatherRows(dtable, dout, ids);
    return { dtable };
  },
  reference: (c, { dtable, dout, ids }) => {
    const shape = { width: c.width, ids: ids.values };
    const { table } = gatherRowsReference.gradients({ table: dtable.values }, dout.values, shape);
    return { dtable: table.map((value, i) => value + dtable.values[i]!) };
  },
  tolerance: () => ({ relative: 1e-6 }),
});
