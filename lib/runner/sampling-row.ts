/** How one sequence chooses its next token; native/ops/sample/sample.h. */
export interface SamplingRow {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  seed: number;
  /** Tokens drawn before: with the seed, all that the draw depends on. */
  counter: number;
  /** Bit mask of the tokens the penalty applies to; only with a penalty. */
  seen?: Int32Array;
  /** Alternatives to report. */
  alternatives: number;
}

export interface SampledToken {
  token: number;
  logprob: number;
  alternatives: { token: number; logprob: number }[];
}

/** Words of the bit mask of seen tokens. */
export const seenWords = (vocabSize: number): number => Math.ceil(vocabSize / 32);

/** f32 [rows, 4] as native/ops/sample/sample.h wants it. */
export function packSettings(rows: readonly SamplingRow[]): Float32Array {
  return Float32Array.from(
    rows.flatMap((r) => [r.temperature, r.topP, r.minP, r.repetitionPenalty]),
  );
}

/** i32 [rows, 4] likewise. */
export function packIntegers(rows: readonly SamplingRow[]): Int32Array {
  const values = rows.flatMap(({ topK, seed, counter }) => [
    topK,
    (seed % 2 ** 32) | 0,
    Math.floor(seed / 2 ** 32) | 0,
    counter,
  ]);
  return Int32Array.from(values);
}
