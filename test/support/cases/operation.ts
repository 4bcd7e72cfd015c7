import type { Ops } from '../../../lib/native/ops';
import type { Tensor } from '../../../lib/native/tensor';
import type { Tolerance } from '../compare';
import type { HostTensor } from '../host-tensor';
import type { Random } from '../random';

export type HostTensors = Record<string, HostTensor | undefined>;

/** The same tensors on a device. */
export type DeviceTensors<In extends HostTensors> = {
  [K in keyof In]: In[K] extends HostTensor ? Tensor : Tensor | undefined;
};

/**
 * An operation and the cases it is tried on: tests compare `run` with `reference`, benchmarks time it.
 * No test framework in here.
 */
export interface OperationCases<Case extends { name: string }, In extends HostTensors> {
  operation: string;
  cases: readonly Case[];
  inputs(c: Case, random: Random): In;
  /** Enqueues the operation; returns its results, contiguous. */
  run(ops: Ops, tensors: DeviceTensors<In>, c: Case): Record<string, Tensor>;
  /** In float64, from the rounded inputs. A reference may be shorter than its result. */
  reference(c: Case, host: In): Record<string, Float64Array | Int32Array>;
  tolerance(c: Case): Tolerance;
}

/** Checks the types of a case list, and keeps them. */
export function defineCases<Case extends { name: string }, In extends HostTensors>(
  cases: OperationCases<Case, In>,
): OperationCases<Case, In> {
  return cases;
}
