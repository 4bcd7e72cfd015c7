import { absorbQuery } from '../../../lib/selftest/cases/absorb-query';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { sweep } from '../../support/sweep';

forEachDevice('absorb_query', (lab) => {
  sweep(lab, absorbQuery);

  test('a query of another width is refused', async () => {
    const absorb = () =>
      lab.runOne((ops) =>
        ops.absorbQuery(ops.activation(2, 3, 9), ops.activation(3, 8, 4), ops.float(2, 4)),
      );
    await expectLozaError(absorb, 'ERR_LOZA_INTERNAL', /absorb_query q/);
  });
});
