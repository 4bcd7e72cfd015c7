import { compareBits } from '../../../lib/selftest/compare';
import { gradientOperations } from '../../../lib/selftest/operations';
import { Random } from '../../../lib/selftest/random';
import { forEachDevice } from '../../support/devices';
import { sweep } from '../../support/sweep';

forEachDevice('gradients', (lab) => {
  describe.each(gradientOperations)('$operation', (operation) => {
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
