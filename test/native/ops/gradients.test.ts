import { adamw, clipFactor } from '../../../lib/selftest/cases/adamw';
import { blend, dot } from '../../../lib/selftest/cases/blend';
import { combineGradient, sumSlots } from '../../../lib/selftest/cases/combine-gradient';
import { gatherRowsGradient } from '../../../lib/selftest/cases/gather-rows-gradient';
import {
  groupedLinearInputGradient,
  groupedLinearWeightGradient,
} from '../../../lib/selftest/cases/grouped-linear-gradient';
import {
  linearInputGradient,
  linearWeightGradient,
} from '../../../lib/selftest/cases/linear-gradient';
import { crossEntropy, squaredDifference } from '../../../lib/selftest/cases/losses';
import { rmsNormGradient } from '../../../lib/selftest/cases/rms-norm-gradient';
import { routeGradient } from '../../../lib/selftest/cases/route-gradient';
import { swigluGradient } from '../../../lib/selftest/cases/swiglu-gradient';
import type { AnyOperation } from '../../../lib/selftest/operations';
import { forEachDevice } from '../../support/devices';
import { sweep } from '../../support/sweep';

const operations = [
  linearInputGradient,
  linearWeightGradient,
  rmsNormGradient,
  swigluGradient,
  routeGradient,
  groupedLinearInputGradient,
  groupedLinearWeightGradient,
  combineGradient,
  sumSlots,
  gatherRowsGradient,
  crossEntropy,
  squaredDifference,
  blend,
  dot,
  adamw,
  clipFactor,
] as unknown as readonly AnyOperation[];

forEachDevice('gradients', (lab) => {
  for (const operation of operations)
    describe(operation.operation, () => {
      sweep(lab, operation);
    });
});
