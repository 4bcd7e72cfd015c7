import { expertPlan } from '../../../lib/selftest/cases/expert-plan';
import { forEachDevice, testDataChecks } from '../../support/devices';
import { expectLozaError } from '../../support/errors';
import { host } from '../../../lib/selftest/host-tensor';
import { sweep } from '../../support/sweep';

forEachDevice('expert_plan', (lab) => {
  sweep(lab, expertPlan);

  testDataChecks(lab.kind)('a negative id fails the stream', async () => {
    const ids = host('i32', [1, 2], [0, -1]);
    await expectLozaError(
      () => lab.run((ops) => ({ ...ops.expertPlan(lab.upload(ids), 4) })),
      'ERR_LOZA_INTERNAL',
      /-1 is no expert/,
    );
  });
});
