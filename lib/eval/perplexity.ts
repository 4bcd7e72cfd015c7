import { throwIfAborted } from '../errors';
import type { LanguageModel } from '../language-model';
import { statistics } from '../bench/statistics';
import { Random } from './random';

/** How well a text is predicted at positions from..to-1 of a window. */
export interface PerplexityBucket {
  from: number;
  to: number;
  /** Positions that were measured. */
  count: number;
  /** Mean negative log-likelihood in nats a token. */
  loss: number;
  /** Half of the 95 % confidence interval of `loss`. */
  error: number;
  perplexity: number;
}

export interface PerplexityRequest {
  /** The whole text. */
  tokens: Int32Array;
  /** Tokens of a window; a shorter text is one window. */
  length: number;
  windows: number;
  seed: number;
  signal?: AbortSignal | undefined;
  onWindow?: () => void;
}

const firstBucket = 128;
/** Floats of logits that one window may take. */
const maxLogits = 2 ** 26;
const mostPerBucket = 256;

/** Scores random windows of a text; positions are sampled where a vocabulary is too large for all. */
export async function measurePerplexity(
  model: LanguageModel,
  { tokens, windows, seed, signal, onWindow, ...request }: PerplexityRequest,
): Promise<PerplexityBucket[]> {
  const bos = model.tokenizer?.bosId;
  const first = bos === undefined ? [] : [bos];
  const length = Math.min(request.length, tokens.length + first.length);
  const buckets = bucketsOf(length);
  const losses = buckets.map((): number[] => []);
  for (let i = 0; i < windows; i++) {
    throwIfAborted(signal);
    const random = new Random(seed, 'perplexity', length, i);
    const size = length - first.length;
    const start = random.below(tokens.length - size + 1);
    const window = Int32Array.from([...first, ...tokens.subarray(start, start + size)]);
    const most = Math.floor(maxLogits / (model.info.vocabSize * buckets.length));
    const chosen = buckets.map(([from, to]) =>
      choose(random, from, to, Math.min(Math.max(most, 8), mostPerBucket)),
    );
    // The logits at a position are about the token behind it.
    const positions = chosen.flat().map((position) => position - 1);
    const { logits, vocabSize } = await model.score(window, { positions, signal });
    let row = 0;
    chosen.forEach((some, bucket) => {
      for (const position of some) {
        const values = logits.subarray(row * vocabSize, ++row * vocabSize);
        losses[bucket]?.push(surprise(values, window[position] as number));
      }
    });
    onWindow?.();
  }
  return buckets.flatMap(([from, to], i) => {
    const own = losses[i] as number[];
    return own.length === 0 ? [] : [summarize(from, to, own)];
  });
}

/** 1..128, 128..256, 256..512 and so on to `length`. */
function bucketsOf(length: number): [number, number][] {
  const buckets: [number, number][] = [[1, Math.min(firstBucket, length)]];
  for (let from = firstBucket; from < length; from *= 2) {
    buckets.push([from, Math.min(from * 2, length)]);
  }
  return buckets;
}

function choose(random: Random, from: number, to: number, most: number): number[] {
  const all = Array.from({ length: to - from }, (_, i) => from + i);
  return all.length <= most ? all : random.sample(all, most).sort((a, b) => a - b);
}

/** -ln p of a token under the softmax of its logits. */
function surprise(logits: Float32Array, token: number): number {
  let max = -Infinity;
  for (const value of logits) if (value > max) max = value;
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - max);
  return Math.log(sum) + max - (logits[token] as number);
}

function summarize(from: number, to: number, losses: readonly number[]): PerplexityBucket {
  const { mean, sd } = statistics(losses);
  const error = (1.96 * sd) / Math.sqrt(losses.length);
  return { from, to, count: losses.length, loss: mean, error, perplexity: Math.exp(mean) };
}
