import { combine } from '../../../lib/selftest/cases/combine';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

forEachDevice('combine', (lab) => {
  sweep(lab, combine);

  const run = (place: number[]) =>
    lab.run((ops) => {
      const [out, y, weights] = [ops.activation(1, 4), ops.activation(2, 4), ops.float(1, 2)];
      const places = lab.upload(host('i32', [place.length], place));
      ops.combine(out, y, { order: places, place: places, starts: places }, weights, undefined);
      return { out };
    });

  testDataChecks(lab.kind)('a zero expert without identity fails the stream', async () => {
    await expectLozaError(() => run([0, -1]), 'ERR_LOZA_INTERNAL', /identity is absent/);
  });

  testDataChecks(lab.kind)('a place outside y fails the stream', async () => {
    await expectLozaError(() => run([0, 2]), 'ERR_LOZA_INTERNAL', /place 2 is outside/);
  });

  test('places for another number of slots are refused', async () => {
    await expectLozaError(() => run([0, 1, 1]), 'ERR_LOZA_INTERNAL', /combine place/);
  });
});
