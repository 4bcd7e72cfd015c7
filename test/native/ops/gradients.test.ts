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
import { compareBits } from '../../../lib/selftest/compare';
import type { AnyOperation } from '../../../lib/selftest/operations';
import { Random } from '../../../lib/selftest/random';
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
  describe.each(operations)('$operation', (operation) => {
    sweep(lab, operation);

    test('the same inputs give the same bits, every time', async () => {
      const c = operation.cases.at(-1)!;
      const inputs = operation.inputs(c, new Random(c.name), lab.activation);
      const shapes: Record<string, readonly number[]> = {};
      const once = () =>
        lab.run((ops) => {
          const outputs = operation.run(ops, lab.uploadAll(inputs), c);
          for (const [name, { shape }] of Object.entries(outputs)) shapes[name] = shape;
          return outputs;
        });
      const first = await once();
      for (const [name, again] of Object.entries(await once()))
        compareBits(name, again, first[name]!, shapes[name]!);
    });
  });
});
