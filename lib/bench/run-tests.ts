import { performance } from 'node:perf_hooks';

import type { Sequence } from '../engine/sequence';
import { throwIfAborted } from '../errors';
import type { LoadedModel } from '../load-model';
import type { StepWork } from '../runner/model-runner';
import { testLength, type BenchTest } from './grammar';
import { greedy, seat } from './sequences';
import { randomIntegers } from './statistics';

/** One repetition of a test, in milliseconds. */
export interface TestSample {
  total: number;
  /** Until the first new token, in the mean of the sequences; undefined without a prompt. */
  firstToken: number | undefined;
  promptSteps: number[];
  generateSteps: number[];
  /** KV bytes that the sequences hold at the end, and what they would hold were all full. */
  kv: { resident: number; full: number };
}

export interface RunOptions {
  repetitions: number;
  warmUp: boolean;
  /** Decides the tokens: the same for every arm. */
  seed: number;
  /**
   * Cache rows at the depth are random instead of computed. Times do not depend on the values, and
   * a depth of 1M costs nothing.
   */
  randomDepth: boolean;
  signal?: AbortSignal | undefined;
  onRun?: (() => void) | undefined;
}

/** Runs a test as often as asked, after a warm-up of a chunk and the generation. */
export async function runTest(
  loaded: LoadedModel,
  test: BenchTest,
  options: RunOptions,
): Promise<TestSample[]> {
  if (options.warmUp) {
    const prompt = Math.min(test.prompt, test.chunk);
    await runOnce(loaded, { ...test, prompt }, options);
  }
  const samples: TestSample[] = [];
  while (samples.length < options.repetitions) {
    samples.push(await runOnce(loaded, test, options));
    options.onRun?.();
  }
  return samples;
}

async function runOnce(
  loaded: LoadedModel,
  test: BenchTest,
  { seed, randomDepth, signal }: RunOptions,
): Promise<TestSample> {
  const { groups, plan } = loaded;
  const draw = randomIntegers(seed, plan.model.mla.vocabSize);
  const { batch, chunk, depth } = test;
  const length = testLength(test) - (randomDepth ? depth : 0);
  const tokens = () => Array.from({ length }, draw);
  const sequences = seat(groups, { batch, tokens, depth: randomDepth ? depth : 0 });
  try {
    if (!randomDepth) await readPrompts(loaded, sequences, depth, chunk, signal);
    const start = performance.now();
    const prompt = await readPrompts(loaded, sequences, test.prompt, chunk, signal);
    const generateSteps = await timeGeneration(loaded, sequences, test.generate, signal);
    const total = performance.now() - start;
    const { promptSteps, firstTokens } = prompt;
    const firstToken = firstTokens.length > 0 ? sum(firstTokens) / firstTokens.length : undefined;
    return { total, firstToken, promptSteps, generateSteps, kv: holdings(sequences) };
  } finally {
    for (const sequence of sequences) sequence.release();
  }
}

/** Reads the next `count` tokens of every sequence, at most `chunk` tokens a step, in turn. */
async function readPrompts(
  loaded: LoadedModel,
  sequences: readonly Sequence[],
  count: number,
  chunk: number,
  signal: AbortSignal | undefined,
): Promise<{ promptSteps: number[]; firstTokens: number[] }> {
  const promptSteps: number[] = [];
  const firstTokens: number[] = [];
  const start = performance.now();
  const left = sequences.map((sequence) => ({ sequence, remaining: count }));
  while (left.some(({ remaining }) => remaining > 0)) {
    throwIfAborted(signal);
    const work = nextChunk(left, chunk);
    promptSteps.push(await timeStep(loaded, work));
    const done = work.filter(({ sample }) => sample !== undefined).length;
    for (let i = 0; i < done; i++) firstTokens.push(performance.now() - start);
  }
  return { promptSteps, firstTokens };
}

/** The last chunk of a prompt samples the first new token. */
function nextChunk(left: { sequence: Sequence; remaining: number }[], chunk: number): StepWork[] {
  let budget = chunk;
  const work: StepWork[] = [];
  for (const item of left) {
    const count = Math.min(item.remaining, budget);
    if (count === 0) continue;
    item.remaining -= count;
    budget -= count;
    const { sequence } = item;
    work.push(item.remaining > 0 ? { sequence, count } : { sequence, count, sample: greedy });
  }
  return work;
}

/**
 * Milliseconds of each of `count` decode steps, from the end of the one before. As in the engine, a
 * step is enqueued before the tokens of the one before are read; here they are known beforehand.
 */
export async function timeGeneration(
  loaded: LoadedModel,
  sequences: readonly Sequence[],
  count: number,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const start = () => {
    const work = sequences.map((sequence) => ({ sequence, count: 1, sample: greedy }));
    const { outputs } = loaded.parts.runner.start(work);
    outputs.catch(() => {}); // told when it is waited for
    return outputs;
  };
  const times: number[] = [];
  let from = performance.now();
  let step = count > 0 ? start() : undefined;
  while (step !== undefined) {
    throwIfAborted(signal);
    const next = times.length + 1 < count ? start() : undefined;
    await step;
    const now = performance.now();
    times.push(now - from);
    [from, step] = [now, next];
  }
  return times;
}

export async function timeStep(loaded: LoadedModel, work: readonly StepWork[]): Promise<number> {
  const start = performance.now();
  await loaded.parts.runner.start(work).outputs;
  return performance.now() - start;
}

function holdings(sequences: readonly Sequence[]): { resident: number; full: number } {
  const each = sequences.map((sequence) => sequence.kvBytes(sequence.computed));
  return {
    resident: sum(each.map(({ resident }) => resident)),
    full: sum(each.map(({ full }) => full)),
  };
}

const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
