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
  const settings = new Float32Array(rows.length * 4);
  rows.forEach((row, i) => writeSettings(settings, i * 4, row));
  return settings;
}

/** i32 [rows, 4] likewise. */
export function packIntegers(rows: readonly SamplingRow[]): Int32Array {
  const integers = new Int32Array(rows.length * 4);
  rows.forEach((row, i) => writeIntegers(integers, i * 4, row));
  return integers;
}

export function writeSettings(to: Float32Array, at: number, row: SamplingRow): void {
  to[at] = row.temperature;
  to[at + 1] = row.topP;
  to[at + 2] = row.minP;
  to[at + 3] = row.repetitionPenalty;
}

export function writeIntegers(to: Int32Array, at: number, row: SamplingRow): void {
  to[at] = row.topK;
  to[at + 1] = row.seed % 2 ** 32; // an Int32Array keeps the low 32 bits
  to[at + 2] = Math.floor(row.seed / 2 ** 32);
  to[at + 3] = row.counter;
}
