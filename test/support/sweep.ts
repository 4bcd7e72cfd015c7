import type { HostTensors, OperationCases } from '../../lib/selftest/cases/operation';
import { runCase } from '../../lib/selftest/run-case';
import type { Lab } from './devices';

/** One test a case: the operation on the lab's device against the reference. */
export function sweep<Case extends { name: string }, In extends HostTensors>(
  lab: Lab,
  operation: OperationCases<Case, In>,
): void {
  for (const c of operation.cases) {
    const reason = operation.skip?.(c, lab.kind, lab.activation);
    if (reason !== undefined) {
      test.skip(`${c.name}: ${reason}`, () => {});
      continue;
    }
    test(c.name, async () => {
      expect((await runCase(lab, operation, c)).failures).toEqual([]);
    });
  }
}
