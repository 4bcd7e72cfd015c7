import { LozaError } from '../errors';

/** How far a result may be from its reference. */
export interface Tolerance {
  /** Bound of ||out - reference|| / ||reference||. 0: every value must be equal. */
  relative: number;
  /** Bound of |out - reference| of every element; without it, 32 * relative * max |reference|. */
  absolute?: number;
}

/** Bounds for fp32 arithmetic, and what differs where activations are bf16. */
export interface OutputTolerance extends Tolerance {
  inBf16?: Partial<Tolerance>;
}

export interface Difference {
  /** ||out - reference|| / ||reference||. */
  relative: number;
  /** What is wrong with it; undefined where it is within the tolerance. */
  failure: string | undefined;
}

/**
 * How near `out` is to `reference`, and whether that is as near as `tolerance` says. NaN passes
 * nowhere. A reference shorter than the result says nothing about the rest of it.
 */
export function measure(
  out: ArrayLike<number>,
  reference: ArrayLike<number>,
  shape: readonly number[],
  tolerance: Tolerance,
): Difference {
  if (out.length < reference.length) {
    return { relative: NaN, failure: `${out.length} values, expected ${reference.length}` };
  }
  const bound = tolerance.absolute ?? 32 * tolerance.relative * largest(reference);
  let [squares, error, most, worst, firstBad] = [0, 0, 0, 0, -1];
  for (let i = 0; i < reference.length; i++) {
    const delta = Math.abs(out[i]! - reference[i]!);
    if (!(delta <= bound) && firstBad < 0) firstBad = i;
    if (delta > most) [most, worst] = [delta, i];
    squares += reference[i]! ** 2;
    error += delta ** 2;
  }
  const relative = error === 0 ? 0 : Math.sqrt(error / squares);
  const at = (i: number) =>
    `at [${coordinates(i, shape)}]: ${out[i]!}, expected ${reference[i]!} (off by ${Math.abs(out[i]! - reference[i]!)})`;
  let failure: string | undefined;
  if (firstBad >= 0) failure = `first bad value ${at(firstBad)}; bound ${bound}`;
  else if (!(relative <= tolerance.relative))
    failure = `relative error ${relative}, bound ${tolerance.relative}; worst ${at(worst)}`;
  return { relative, failure };
}

/** Throws unless `out` is as near to `reference` as `tolerance` says. */
export function compare(
  name: string,
  out: ArrayLike<number>,
  reference: ArrayLike<number>,
  shape: readonly number[],
  tolerance: Tolerance,
): void {
  const { failure } = measure(out, reference, shape, tolerance);
  if (failure !== undefined) throw mismatch(`${name}: ${failure}`);
}

/** Throws unless both hold the same bits (so that NaN equals NaN, but 0 is not -0). */
export function compareBits(
  name: string,
  out: ArrayLike<number>,
  expected: ArrayLike<number>,
  shape: readonly number[],
): void {
  if (out.length !== expected.length)
    throw mismatch(`${name}: ${out.length} values, expected ${expected.length}`);
  for (let i = 0; i < expected.length; i++)
    if (!Object.is(out[i], expected[i]))
      throw mismatch(
        `${name}: not the same bits, first at [${coordinates(i, shape)}]: ${out[i]!}, expected ${expected[i]!}`,
      );
}

export function largest(values: ArrayLike<number>): number {
  let most = 0;
  for (let i = 0; i < values.length; i++) most = Math.max(most, Math.abs(values[i]!));
  return most;
}

function coordinates(index: number, shape: readonly number[]): string {
  const result: number[] = [];
  for (const extent of [...shape].reverse()) {
    result.unshift(index % extent);
    index = Math.floor(index / extent);
  }
  return result.join(', ');
}

function mismatch(problem: string): LozaError {
  return new LozaError('ERR_LOZA_INTERNAL', problem);
}
