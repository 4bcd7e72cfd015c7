import { headLinear } from '../../../lib/selftest/cases/head-linear';
import { compareBits } from '../../../lib/selftest/compare';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

forEachDevice('head_linear', (lab) => {
  sweep(lab, headLinear);

  test.each([false, true])(
    'a row gives the same bits whatever the batch (transposed: %s)',
    async (transposed) => {
      const [rows, heads, n, k] = [70, 3, 64, 96];
      const random = new Random('head_linear');
      const x = random.normals(rows * heads * k);
      const weight = host('bf16', [heads, n, k], random.normals(heads * n * k));
      const product = (from: number, to: number) =>
        lab.runOne((ops) => {
          const input = lab.upload(
            host(
              lab.activation,
              [to - from, heads, k],
              x.subarray(from * heads * k, to * heads * k),
            ),
          );
          const out = ops.activation(to - from, heads, n);
          const stored = lab.upload(weight);
          ops.headLinear(
            out,
            input,
            transposed ? stored.view('bf16', [heads, n, k], [n * k, 1, n], 0) : stored,
          );
          return out;
        });
      const all = await product(0, rows);
      for (const [from, to] of [
        [0, 1],
        [1, 3],
        [3, 7],
        [7, 70],
      ] as const)
        compareBits(
          `rows ${from} to ${to}`,
          await product(from, to),
          all.subarray(from * heads * n, to * heads * n),
          [to - from, heads, n],
        );
    },
  );

  test('writes into a view', async () => {
    const out = await lab.runOne((ops) => {
      const whole = ops.activation(2, 2, 5);
      ops.fill(whole, 7);
      const [x, weight] = [ops.activation(2, 2, 3), ops.float(2, 2, 3)];
      for (const tensor of [x, weight]) ops.fill(tensor, 1);
      ops.headLinear(whole.slice(2, 1, 3), x, weight);
      return whole;
    });
    expect([...out]).toEqual(Array.from({ length: 4 }, () => [7, 3, 3, 7, 7]).flat());
  });

  test.each([
    ['another number of heads', [2, 4, 8], [3, 5, 8]],
    ['another width', [2, 3, 7], [3, 5, 8]],
  ])('%s: refused', async (_, x, weight) => {
    const run = () =>
      lab.runOne((ops) => {
        const out = ops.activation(2, 3, 5);
        ops.headLinear(out, ops.activation(...x), ops.float(...weight));
        return out;
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /head_linear: x/);
  });
});
