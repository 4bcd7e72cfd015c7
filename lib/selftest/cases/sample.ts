import { host } from '../host-tensor';
import type { Random } from '../random';
import { topIndices } from './route';
import { defineCases } from './operation';

/** One row's settings, as native/ops/sample/sample.h packs them. */
export interface SampleSettings {
  temperature: number;
  topP: number;
  minP: number;
  penalty: number;
  topK: number;
  seed: number;
  counter: number;
}

export const greedy: SampleSettings = {
  ...{ temperature: 0, topP: 1, minP: 0, penalty: 1 },
  ...{ topK: 0, seed: 0, counter: 0 },
};

export function packSettings(rows: readonly SampleSettings[]) {
  const settings = rows.flatMap((s) => [s.temperature, s.topP, s.minP, s.penalty]);
  const integers = rows.flatMap((s) => [
    s.topK,
    s.seed | 0,
    Math.floor(s.seed / 2 ** 32),
    s.counter | 0,
  ]);
  return {
    settings: host('f32', [rows.length, 4], settings),
    integers: host('i32', [rows.length, 4], integers),
  };
}

/** Bit masks of the tokens that each row has seen. */
export function seenMask(rows: readonly (readonly number[])[], vocab: number) {
  const words = Math.ceil(vocab / 32);
  const mask = new Int32Array(rows.length * words);
  rows.forEach((tokens, row) => {
    for (const token of tokens) mask[row * words + (token >> 5)]! |= 1 << (token & 31);
  });
  return host('i32', [rows.length, words], mask);
}

function penalised(
  logits: ArrayLike<number>,
  seen: readonly number[],
  penalty: number,
): Float64Array {
  const out = Float64Array.from(logits);
  const r = Math.fround(penalty);
  for (const token of new Set(seen))
    out[token] = out[token]! > 0 ? out[token]! / r : out[token]! * r;
  return out;
}

/** The probability of each token: penalty, temperature, top-k, top-p, min-p, in float64. */
export function distribution(
  logits: ArrayLike<number>,
  seen: readonly number[],
  { temperature, topP, minP, penalty, topK }: SampleSettings,
): Float64Array {
  const values = penalised(logits, seen, penalty);
  let kept = topIndices(values, values.length);
  if (temperature === 0) kept = kept.slice(0, 1);
  if (topK > 0) kept = kept.slice(0, topK);
  const largest = values[kept[0]!]!;
  const divisor = temperature === 0 ? 1 : Math.fround(temperature);
  const weight = (token: number) => Math.exp((values[token]! - largest) / divisor);
  const total = kept.reduce((sum, token) => sum + weight(token), 0);
  if (topP < 1) {
    let reached = 0;
    let count = 0;
    while (count < kept.length && (count === 0 || reached < Math.fround(topP) * total))
      reached += weight(kept[count++]!);
    kept = kept.slice(0, count);
  }
  kept = kept.filter((token) => weight(token) >= Math.fround(minP));
  const mass = kept.reduce((sum, token) => sum + weight(token), 0);
  const out = new Float64Array(values.length);
  for (const token of kept) out[token] = weight(token) / mass;
  return out;
}

export function logSoftmax(logits: ArrayLike<number>): Float64Array {
  const largest = Array.from(logits).reduce((a, b) => Math.max(a, b));
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(logits[i]! - largest);
  return Float64Array.from(logits, (x) => x - largest - Math.log(total));
}

interface Case {
  name: string;
  rows: number;
  vocab: number;
  alternatives: number;
  spread: number;
  /** Logits rounded to multiples of this: ties. */
  step?: number;
  penalty?: number;
}

/** Greedy choices and log-probabilities; draws are tested against the distribution. */
export const sample = defineCases({
  operation: 'sample',
  cases: [
    { name: 'one token', rows: 1, vocab: 1, alternatives: 1, spread: 1 },
    { name: 'odd sizes', rows: 5, vocab: 37, alternatives: 3, spread: 2 },
    { name: 'ties', rows: 9, vocab: 1000, alternatives: 20, spread: 2, step: 1 },
    { name: 'all alternatives', rows: 2, vocab: 16, alternatives: 16, spread: 1, step: 0.5 },
    { name: 'no alternatives', rows: 3, vocab: 100, alternatives: 0, spread: 1 },
    { name: 'a repetition penalty', rows: 6, vocab: 333, alternatives: 4, spread: 1, penalty: 2.5 },
    { name: 'the vocabulary of LongCat', rows: 2, vocab: 131072, alternatives: 20, spread: 4 },
    { name: 'an odd vocabulary', rows: 3, vocab: 4099, alternatives: 7, spread: 3, penalty: 1.5 },
    { name: 'flat logits', rows: 1, vocab: 131072, alternatives: 5, spread: 0, step: 1 },
  ] as Case[],
  inputs: (c, random: Random) => {
    const step = c.step ?? 0;
    const raw = random.normals(c.rows * c.vocab, c.spread);
    const logits = step === 0 ? raw : raw.map((x) => Math.round(x / step) * step + 0);
    const seen = Array.from({ length: c.rows }, (_, row) => {
      const own = Array.from(logits.subarray(row * c.vocab, (row + 1) * c.vocab));
      return topIndices(own, 5).filter((token, i) => i % 2 === 0 || token % 3 === 0);
    });
    return {
      logits: host('f32', [c.rows, c.vocab], logits),
      seen: c.penalty === undefined ? undefined : seenMask(seen, c.vocab),
      ...packSettings(Array<SampleSettings>(c.rows).fill({ ...greedy, penalty: c.penalty ?? 1 })),
    };
  },
  run: (ops, { logits, seen, settings, integers }, c) => {
    return { ...ops.sample(logits, settings, integers, seen, c.alternatives) };
  },
  reference: (c, { logits, seen }) => {
    const tokens = new Int32Array(c.rows);
    const logprobs = new Float64Array(c.rows);
    const topTokens = new Int32Array(c.rows * c.alternatives);
    const topLogprobs = new Float64Array(c.rows * c.alternatives);
    for (let row = 0; row < c.rows; row++) {
      const own = logits.values.subarray(row * c.vocab, (row + 1) * c.vocab);
      const all = logSoftmax(own);
      const words = Math.ceil(c.vocab / 32);
      const marked = Array.from({ length: c.vocab }, (_, token) => token).filter(
        (token) => ((seen?.values[row * words + (token >> 5)] ?? 0) >> (token & 31)) & 1,
      );
      tokens[row] = topIndices(penalised(own, marked, c.penalty ?? 1), 1)[0]!;
      logprobs[row] = all[tokens[row]!]!;
      const best = topIndices(own, c.alternatives);
      topTokens.set(best, row * c.alternatives);
      topLogprobs.set(
        best.map((token) => all[token]!),
        row * c.alternatives,
      );
    }
    const result = { tokens, logprobs };
    return c.alternatives > 0 ? { ...result, topTokens, topLogprobs } : result;
  },
  tolerance: () => ({ relative: 1e-6, absolute: 1e-5 }),
});
