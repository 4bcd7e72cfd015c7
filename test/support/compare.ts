/** How far a result may be from its reference. */
export interface Tolerance {
  /** Bound of ||out - reference|| / ||reference||. 0: every value must be equal. */
  relative: number;
  /** Bound of |out - reference| of every element; without it, 32 * relative * max |reference|. */
  absolute?: number;
}

export interface Difference {
  relative: number;
  absolute: number;
}

/**
 * Throws unless `out` is as near to `reference` as `tolerance` says. NaN passes nowhere. A reference
 * shorter than the result says nothing about the rest of it.
 */
export function compare(
  name: string,
  out: ArrayLike<number>,
  reference: ArrayLike<number>,
  shape: readonly number[],
  tolerance: Tolerance,
): Difference {
  if (out.length < reference.length)
    throw new Error(`${name}: ${out.length} values, expected ${reference.length}`);
  const bound = tolerance.absolute ?? 32 * tolerance.relative * largest(reference);
  const difference = { relative: 0, absolute: 0 };
  let squares = 0;
  let error = 0;
  let worst = 0;
  let firstBad = -1;
  for (let i = 0; i < reference.length; i++) {
    const delta = Math.abs(out[i]! - reference[i]!);
    if (!(delta <= bound) && firstBad < 0) firstBad = i;
    if (delta > difference.absolute) [difference.absolute, worst] = [delta, i];
    squares += reference[i]! ** 2;
    error += delta ** 2;
  }
  difference.relative = error === 0 ? 0 : Math.sqrt(error / squares);
  const at = (i: number) =>
    `at [${coordinates(i, shape)}]: ${out[i]!}, expected ${reference[i]!} (off by ${Math.abs(out[i]! - reference[i]!)})`;
  if (firstBad >= 0) throw new Error(`${name}: first bad value ${at(firstBad)}; bound ${bound}`);
  if (!(difference.relative <= tolerance.relative))
    throw new Error(
      `${name}: relative error ${difference.relative}, bound ${tolerance.relative}; worst ${at(worst)}`,
    );
  return difference;
}

/** Throws unless both hold the same bits (so that NaN equals NaN, but 0 is not -0). */
export function compareBits(
  name: string,
  out: ArrayLike<number>,
  expected: ArrayLike<number>,
  shape: readonly number[],
): void {
  if (out.length !== expected.length)
    throw new Error(`${name}: ${out.length} values, expected ${expected.length}`);
  for (let i = 0; i < expected.length; i++)
    if (!Object.is(out[i], expected[i]))
      throw new Error(
        `${name}: not the same bits, first at [${coordinates(i, shape)}]: ${out[i]!}, expected ${expected[i]!}`,
      );
}

function largest(values: ArrayLike<number>): number {
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
