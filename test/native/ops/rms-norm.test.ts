import { rmsNormCases } from '../../../lib/selftest/cases/rms-norm';
import { compareBits } from '../../../lib/selftest/compare';
import { forEachDevice } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { Random } from '../../../lib/selftest/random';
import { sweep } from '../../support/sweep';

forEachDevice('rms_norm', (lab) => {
  sweep(lab, rmsNormCases);

  test('in place gives the same bits', async () => {
    const random = new Random('in place');
    const x = host(lab.activation, [7, 100], random.normals(700));
    const weight = host('bf16', [100], random.normals(100));
    const apart = await lab.runOne((ops) => {
      return ops.rmsNorm(lab.upload(x), lab.upload(weight), 1e-5, 2);
    });
    const inPlace = await lab.runOne(() => {
      const out = lab.upload(x);
      lab.stream.native.RmsNorm(out.handle, out.handle, lab.upload(weight).handle, 1e-5, 2);
      return out;
    });
    compareBits('in place', inPlace, apart, x.shape);
  });

  test.each([
    ['a weight of another width', [2, 8], [7]],
    ['x of rank 1', [8], [8]],
  ])('%s is refused', async (_, x, weight) => {
    const run = () =>
      lab.runOne((ops) =>
        ops.rmsNorm(ops.activation(...x, 1).reshape(...x), ops.float(...weight), 0),
      );
    await expectLozaError(run, 'ERR_LOZA_INTERNAL', /./);
  });
});
