import { groupedLinear } from '../../../lib/selftest/cases/grouped-linear';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { compareBits } from '../../../lib/selftest/compare';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

forEachDevice('grouped_linear', (lab) => {
  sweep(lab, groupedLinear);

  const run = (starts: number[], order: number[] = [0, 1, 2, 3], topK = 1) =>
    lab.runOne((ops) => {
      const [x, weight] = [ops.activation(4, 8), ops.float(2, 3, 8)];
      for (const tensor of [x, weight]) ops.fill(tensor, 1);
      const plan = {
        order: lab.upload(host('i32', [order.length], order)),
        place: ops.integers(4),
        starts: lab.upload(host('i32', [starts.length], starts)),
      };
      return ops.groupedLinear(x, { tensor: weight }, plan, topK);
    });

  test('rows of no expert are left as they are', async () => {
    expect([...(await run([0, 1, 3]))]).toEqual([...Array<number>(9).fill(8), NaN, NaN, NaN]);
    expect([...(await run([0, 0, 0]))]).toEqual(Array<number>(12).fill(NaN));
  });

  test('a row gives the same bits whatever shares its expert', async () => {
    const [rows, n, k] = [130, 40, 300];
    const random = new Random('grouped');
    const x = random.normals(rows * k);
    const weight = host('bf16', [1, n, k], random.normals(n * k));
    const product = (from: number, to: number) =>
      lab.runOne((ops) => {
        const count = to - from;
        const input = lab.upload(host(lab.activation, [count, k], x.subarray(from * k, to * k)));
        const plan = {
          order: lab.upload(
            host(
              'i32',
              [count],
              Int32Array.from({ length: count }, (_, i) => i),
            ),
          ),
          place: ops.integers(count),
          starts: lab.upload(host('i32', [2], [0, count])),
        };
        return ops.groupedLinear(input, { tensor: lab.upload(weight) }, plan);
      });
    const all = await product(0, rows);
    for (const [from, to] of [
      [0, 1],
      [1, 3],
      [3, 8],
      [8, 130],
    ] as const)
      compareBits(
        `rows ${from} to ${to}`,
        await product(from, to),
        all.subarray(from * n, to * n),
        [to - from, n],
      );
  });

  testDataChecks(lab.kind).each([
    ['starts that fall', [0, 3, 2], [0, 1, 2, 3]],
    ['starts behind the end', [0, 3, 5], [0, 1, 2, 3]],
    ['an order outside x', [0, 1, 2], [0, 4, 0, 0]],
    ['a negative order', [0, 1, 2], [0, -1, 0, 0]],
  ])('%s: the stream fails', async (_, starts, order) => {
    await expectLozaError(() => run(starts, order), 'ERR_LOZA_INTERNAL', /grouped_linear/);
  });

  test('starts for another number of experts are refused', async () => {
    await expectLozaError(() => run([0, 4]), 'ERR_LOZA_INTERNAL', /grouped_linear: starts/);
  });
});
