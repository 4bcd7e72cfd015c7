import { linear, randomWeight, type WeightType } from '../../../lib/selftest/cases/linear';
import { compare, compareBits } from '../../../lib/selftest/compare';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

forEachDevice('linear', (lab) => {
  sweep(lab, linear);

  test.each<WeightType>(['f32', 'bf16', 'f8e4m3'])(
    // In bf16, kernels are chosen by the number of rows, and round the same sums in another order.
    '%s: a row gives the same in any batch, in f32 the same bits',
    async (dtype) => {
      const [rows, n, k] = [140, 75, 1100];
      const random = new Random(dtype);
      const x = random.normals(rows * k);
      const { weight, scale } = randomWeight(random, dtype, [n, k]);
      const product = (from: number, to: number) =>
        lab.runOne((ops) => {
          const input = lab.upload(
            host(lab.activation, [to - from, k], x.subarray(from * k, to * k)),
          );
          const tensor = lab.upload(weight);
          return ops.linear(input, scale ? { tensor, scale: lab.upload(scale) } : { tensor });
        });
      const same: typeof compareBits = (name, out, expected, shape) =>
        lab.activation === 'f32'
          ? compareBits(name, out, expected, shape)
          : compare(name, out, expected, shape, { relative: 4e-3 });
      const all = await product(0, rows);
      for (const [from, to] of [
        [0, 1],
        [1, 3],
        [3, 6],
        [6, 10],
        [10, 17],
        [17, 113],
        [113, 140],
      ] as const)
        same(`rows ${from} to ${to}`, await product(from, to), all.subarray(from * n, to * n), [
          to - from,
          n,
        ]);
    },
  );

  test.each([
    ['x of another width', [2, 9], [4, 8], 'bf16', undefined, /linear: x/],
    ['f8e4m3 without scales', [2, 8], [4, 8], 'f8e4m3', undefined, /linear/],
    ['scales for bf16', [2, 8], [4, 8], 'bf16', [1, 1], /linear/],
    ['scales of another shape', [2, 8], [4, 8], 'f8e4m3', [2, 1], /linear: scale/],
    ['a weight of integers', [2, 8], [4, 8], 'i32', undefined, /linear: weight/],
    ['a weight of rank 3', [2, 8], [1, 4, 8], 'f32', undefined, /linear: weight/],
  ] as const)('%s: refused', async (_, x, weight, dtype, scale, message) => {
    const run = () =>
      lab.runOne((ops) => {
        const tensor = ops.arena.allocate(dtype, weight);
        return ops.linear(
          ops.activation(...x),
          scale ? { tensor, scale: ops.float(...scale) } : { tensor },
        );
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', message);
  });
});
