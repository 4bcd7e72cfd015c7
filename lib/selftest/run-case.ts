import type { DType } from '../native/tensor';
import type { HostTensors, OperationCases } from './cases/operation';
import { largest, measure, type OutputTolerance, type Tolerance } from './compare';
import { roundToBf16 } from './host-tensor';
import type { Lab } from './lab';
import { Random } from './random';

export interface CaseResult {
  /** The largest of the outputs' relative errors. */
  relativeError: number;
  /** What is wrong, an output each; none: the case passed. */
  failures: string[];
}

/** Relative errors that rounding explains: of a bf16 result (2e-3 at most), and inside a sum. */
const roundingErrors = { bf16: 4e-3, f32: 2e-3 } as const;

/** Runs one case on the lab's device and compares its results with the reference. */
export async function runCase<Case extends { name: string }, In extends HostTensors>(
  lab: Lab,
  operation: OperationCases<Case, In>,
  c: Case,
): Promise<CaseResult> {
  const inputs = operation.inputs(c, new Random(c.name), lab.activation);
  const outputs: Record<string, { dtype: DType; shape: readonly number[] }> = {};
  const results = await lab.run((ops) => {
    const tensors = operation.run(ops, lab.uploadAll(inputs), c);
    for (const [name, { dtype, shape }] of Object.entries(tensors))
      outputs[name] = { dtype, shape };
    return tensors;
  });
  const fromBf16 =
    lab.activation === 'bf16' && Object.values(inputs).some((input) => input?.dtype === 'bf16');
  const failures: string[] = [];
  let relativeError = 0;
  for (const [name, reference] of Object.entries(operation.reference(c, inputs))) {
    const { dtype, shape } = outputs[name]!;
    const given = operation.tolerance(c, name);
    const { expected, tolerance } = bounds(reference, dtype, given, fromBf16 || dtype === 'bf16');
    const { relative, failure } = measure(results[name]!, expected, shape, tolerance);
    relativeError = Number.isNaN(relative) ? NaN : Math.max(relativeError, relative);
    if (failure !== undefined) failures.push(`${name}: ${failure}`);
  }
  return { relativeError, failures };
}

/** What an output of `dtype` must be, and how near it. */
function bounds(
  reference: Float64Array | Int32Array,
  dtype: DType,
  given: OutputTolerance,
  inBf16: boolean,
): { expected: Float64Array | Int32Array; tolerance: Tolerance } {
  if (reference instanceof Int32Array) return { expected: reference, tolerance: { relative: 0 } };
  if (given.relative === 0) {
    const expected = dtype === 'bf16' ? reference.map(roundToBf16) : reference;
    return { expected, tolerance: given };
  }
  if (!inBf16) return { expected: reference, tolerance: given };
  const usual = Math.max(given.relative, roundingErrors[dtype === 'bf16' ? 'bf16' : 'f32']);
  const relative = given.inBf16?.relative ?? usual;
  const absolute = given.inBf16?.absolute ?? given.absolute ?? 8 * relative * largest(reference);
  return { expected: reference, tolerance: { relative, absolute } };
}
