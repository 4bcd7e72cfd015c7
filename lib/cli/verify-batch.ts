import { setMaxListeners } from 'node:events';

import type { LanguageModel } from '../language-model';
import type { LoadOptions } from '../load-options';
import { Random } from '../selftest/random';
import { addUp, compareGreedy, type GreedyComparison } from './compare';
import type { Context } from './context';
import type { ExpectedPrompt } from './expected';
import { withModel } from './open-model';
import { startProgress } from './progress';

/** What became of greedy tokens in batches of one size. */
export interface BatchVerdict {
  batch: number;
  /** All prompts together. */
  greedy: GreedyComparison;
  /** Whether recorded and eager decode steps gave the same tokens and log-probabilities, bit for bit. */
  sameBits: boolean;
  passed: boolean;
}

/** Tokens and log-probabilities of everybody in a batch. */
interface BatchResult {
  batch: number;
  prompt: ExpectedPrompt;
  /** Of the prompt itself. */
  tokens: Int32Array;
  everything: number[];
}

/** Longest of the random prompts: short ones are read in one step, so that all decode together. */
const companionTokens = 4;

/**
 * Continues each prompt among random ones, in batches of these sizes, with recorded and with eager
 * decode steps. Prompts without greedy tokens are left out.
 */
export async function verifyBatches(
  dir: string,
  options: LoadOptions,
  prompts: readonly ExpectedPrompt[],
  { batches, margin }: { batches: readonly number[]; margin: number },
  context: Context,
): Promise<BatchVerdict[]> {
  if (batches.length === 0) return [];
  const wanted = prompts.filter(({ greedy }) => greedy.length > 0);
  const run = (decodeGraphs: boolean) => {
    const more = { decodeGraphs, maxSequences: Math.max(...batches) };
    return withModel(dir, { ...options, ...more }, context, (model) =>
      runBatches(model, wanted, batches, context),
    );
  };
  const recorded = await run(true);
  const eager = await run(false);
  return batches.map((batch) => {
    const mine = recorded.filter((one) => one.batch === batch);
    const greedy = addUp(
      mine.map(({ prompt, tokens }) =>
        compareGreedy(tokens, prompt.greedy, prompt.margins, margin),
      ),
    );
    const sameBits = recorded.every(
      (one, i) => one.batch !== batch || sameValues(one.everything, eager[i]?.everything ?? []),
    );
    return { batch, greedy, sameBits, passed: greedy.passed && sameBits };
  });
}

async function runBatches(
  model: LanguageModel,
  prompts: readonly ExpectedPrompt[],
  batches: readonly number[],
  context: Context,
): Promise<BatchResult[]> {
  const results: BatchResult[] = [];
  const progress = startProgress(context, 'batches', 'runs');
  try {
    for (const batch of batches) {
      for (const prompt of prompts) {
        results.push(await runBatch(model, prompt, batch, context.signal));
        progress.update(results.length, batches.length * prompts.length);
      }
    }
  } finally {
    progress.stop();
  }
  return results;
}

async function runBatch(
  model: LanguageModel,
  prompt: ExpectedPrompt,
  batch: number,
  signal: AbortSignal,
): Promise<BatchResult> {
  setMaxListeners(0, signal); // every generation of the batch listens
  const random = new Random(`${prompt.name} in ${batch}`);
  const all = Array.from({ length: batch }, () =>
    random.integers(1 + random.below(companionTokens), model.info.vocabSize),
  );
  const place = random.below(batch);
  all[place] = prompt.inputIds;
  const greedy = { temperature: 0, repetitionPenalty: 1, ignoreEos: true, logprobs: true };
  const options = { ...greedy, maxNewTokens: prompt.greedy.length, signal };
  const results = await Promise.all(all.map((ids) => model.generate(ids, options).result()));
  return {
    batch,
    prompt,
    tokens: results[place]?.tokens ?? new Int32Array(0),
    everything: results.flatMap(({ tokens, logprobs = [] }) => [...tokens, ...logprobs]),
  };
}

function sameValues(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((value, i) => Object.is(value, b[i]));
}
