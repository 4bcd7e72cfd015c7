import { gatherRows } from '../../../lib/selftest/cases/gather-rows';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

forEachDevice('gather_rows', (lab) => {
  sweep(lab, gatherRows);

  const gather = (ids: number[]) =>
    lab.runOne((ops) => {
      const table = lab.upload(host('f32', [3, 2], [0, 1, 2, 3, 4, 5]));
      return ops.gatherRows(table, lab.upload(host('i32', [ids.length], ids)));
    });

  testDataChecks(lab.kind).each([-1, 3, 2 ** 31 - 1, -(2 ** 31)])(
    'id %i outside the table fails the stream',
    async (id) => {
      await expectLozaError(
        () => gather([0, id]),
        'ERR_LOZA_INVALID_ARG',
        /outside a table of 3 rows/,
      );
      expect([...(await gather([2, 0]))]).toEqual([4, 5, 0, 1]);
    },
  );

  test('a table of integers is refused', async () => {
    await expectLozaError(
      () => lab.runOne((ops) => ops.gatherRows(ops.integers(3, 2), ops.integers(1))),
      'ERR_LOZA_INTERNAL',
      /gather_rows table: expected/,
    );
  });
});
