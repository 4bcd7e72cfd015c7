import type { DeviceKind } from '../../native/binding';
import type { Ops } from '../../native/ops';
import type { DType, Tensor } from '../../native/tensor';
import type { OutputTolerance } from '../compare';
import type { HostTensor } from '../host-tensor';
import type { Random } from '../random';

export type HostTensors = Record<string, HostTensor | undefined>;

/** The same tensors on a device. */
export type DeviceTensors<In extends HostTensors> = {
  [K in keyof In]: In[K] extends HostTensor ? Tensor : Tensor | undefined;
};

/**
 * An operation and the cases it is tried on: tests and `loza selftest` compare `run` with `reference`.
 * No test framework in here.
 */
export interface OperationCases<Case extends { name: string }, In extends HostTensors> {
  operation: string;
  cases: readonly Case[];
  /** Why a case cannot run on this kind of device with these activations; undefined where it can. */
  skip?(c: Case, kind: DeviceKind, act: DType): string | undefined;
  /** `act` is the type of activations on the device; the contracts in native/ops call it so too. */
  inputs(c: Case, random: Random, act: DType): In;
  /** Enqueues the operation; returns its results, contiguous. */
  run(ops: Ops, tensors: DeviceTensors<In>, c: Case): Record<string, Tensor>;
  /** In float64, from the rounded inputs. A reference may be shorter than its result. */
  reference(c: Case, host: In): Record<string, Float64Array | Int32Array>;
  /** Of fp32 arithmetic; run-case.ts widens it where activations are bf16. */
  tolerance(c: Case, output: string): OutputTolerance;
}

/** Checks the types of a case list, and keeps them. */
export function defineCases<Case extends { name: string }, In extends HostTensors>(
  cases: OperationCases<Case, In>,
): OperationCases<Case, In> {
  return cases;
}
