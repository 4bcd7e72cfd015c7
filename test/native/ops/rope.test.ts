import { inverseFrequencies, rope, ropeTable } from '../../../lib/selftest/cases/rope';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

forEachDevice('rope_table', (lab) => {
  sweep(lab, ropeTable);

  test('near position 1M, exact angles differ from fp32 products', async () => {
    const table = (exact: boolean) =>
      lab.runOne((ops) => {
        const positions = lab.upload(host('i32', [1], [1_000_003]));
        return ops.ropeTable(positions, lab.upload(inverseFrequencies(64, 1e7)), 1, exact);
      });
    const [rounded, exact] = [await table(false), await table(true)];
    const worst = Math.max(...exact.map((value, i) => Math.abs(value - rounded[i]!)));
    expect(worst).toBeGreaterThan(1e-3);
    expect(worst).toBeLessThan(0.04);
  });

  test('frequencies without their low part are refused', async () => {
    await expectLozaError(
      () => lab.runOne((ops) => ops.ropeTable(ops.integers(2), ops.float(1, 32), 1, false)),
      'ERR_LOZA_INTERNAL',
      /inverse_frequencies/,
    );
  });
});

forEachDevice('rope', (lab) => {
  sweep(lab, rope);

  test('a table of another row count is refused', async () => {
    const run = () =>
      lab.run((ops) => {
        ops.rope(ops.activation(3, 2, 8), ops.float(2, 8));
        return {};
      });
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /rope x/);
  });
});
