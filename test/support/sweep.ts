import { compare } from './compare';
import type { HostTensors, OperationCases } from './cases/operation';
import type { Lab } from './devices';
import { Random } from './random';

/** One test a case: the operation on the lab's device against the reference. */
export function sweep<Case extends { name: string }, In extends HostTensors>(
  lab: Lab,
  operation: OperationCases<Case, In>,
): void {
  test.each(operation.cases.map((c) => [c.name, c] as const))('%s', async (name, c) => {
    const host = operation.inputs(c, new Random(name));
    const shapes: Record<string, readonly number[]> = {};
    const results = await lab.run((ops) => {
      const tensors = operation.run(ops, lab.uploadAll(host), c);
      for (const [key, tensor] of Object.entries(tensors)) shapes[key] = tensor.shape;
      return tensors;
    });
    for (const [key, reference] of Object.entries(operation.reference(c, host))) {
      const tolerance = reference instanceof Int32Array ? { relative: 0 } : operation.tolerance(c);
      compare(`${operation.operation} ${key}`, results[key]!, reference, shapes[key]!, tolerance);
    }
  });
}
