import { fillRandom } from '../../../lib/selftest/cases/fill-random';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { sweep } from '../../support/sweep';

forEachDevice('fill_random', (lab) => {
  sweep(lab, fillRandom);

  test('mean 0 and the deviation asked for; another seed gives other values', async () => {
    const [a, b] = (await Promise.all(
      [1, 2].map((seed) =>
        lab.runOne((ops) => {
          const out = ops.float(100_000);
          ops.fillRandom(out, [seed, 0], 3);
          return out;
        }),
      ),
    )) as [Float32Array, Float32Array];
    const mean = a.reduce((sum, x) => sum + x, 0) / a.length;
    const deviation = Math.sqrt(a.reduce((sum, x) => sum + x * x, 0) / a.length);
    expect(Math.abs(mean)).toBeLessThan(0.05);
    expect(Math.abs(deviation - 3)).toBeLessThan(0.05);
    expect(a.filter((x, i) => x === b[i]).length).toBeLessThan(100);
  });

  test('integers are refused', async () => {
    const run = () =>
      lab.run((ops) => {
        ops.fillRandom(ops.integers(2), [0, 0], 1);
        return {};
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /fill_random out/);
  });
});
