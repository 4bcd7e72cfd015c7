import { swiglu } from '../../../lib/selftest/cases/swiglu';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { sweep } from '../../support/sweep';

forEachDevice('swiglu', (lab) => {
  sweep(lab, swiglu);

  test('gate and up of different widths are refused', async () => {
    await expectLozaError(
      () => lab.runOne((ops) => ops.swiglu(ops.activation(2, 8), ops.activation(2, 7))),
      'ERR_LOZA_INTERNAL',
      /swiglu up: expected (f32|bf16)\[2, 8\], got (f32|bf16)\[2, 7\]/,
    );
  });
});
