import { performance } from 'node:perf_hooks';

import { Sequence } from '../engine/sequence';
import { throwIfAborted } from '../errors';
import type { LoadedModel } from '../load-model';
import { planBatch } from '../runner/batch';
import { packIntegers, packSettings, type SamplingRow } from '../runner/sampling-row';
import type { StepWork } from '../runner/model-runner';
import { makeStep, uploadBatch } from '../runner/step';
import type { MeasuredLimits } from './kernels';
import type { StepFacts } from './limits';
import { median } from './stopwatch';
import { summarize, Timeline, type OperationRow, type TimelineResult } from './timeline';

/** A step to measure: `batch` sequences with `count` new tokens from `position` on. */
export interface StackStep {
  name: string;
  batch: number;
  count: number;
  position: number;
}

/** How a step spends its time, in microseconds. */
export interface StackRow extends StackStep {
  tokensPerSecond: number;
  /** As the engine sees it, in the median of the runs: to the tokens, of a decode step from those before. */
  step: number;
  runs: number;
  /** On the device: the same operations as one recorded graph. */
  graph: number;
  /** The sum over the operations, each with the gap before it, as the clock between them tells. */
  sum: number;
  operations: number;
  /**
   * What one more kernel behind every operation adds to the graph, an operation: bounds the gap
   * between two kernels, since it holds that kernel's own time too.
   */
  gap: number;
  table: OperationRow[];
}

const greedy: SamplingRow = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
  ...{ seed: 0, counter: 0, alternatives: 0 },
};

export interface StackOptions {
  limits: MeasuredLimits;
  /** Part of the routed slots that real experts get. */
  realExperts: number;
  runs: number;
  signal?: AbortSignal | undefined;
}

/** Caches start as random values: what lies there was never written otherwise. */
export function fillCaches({ groups, parts }: LoadedModel): void {
  for (const group of groups) {
    group.attentions.forEach((attention, n) => {
      parts.ops.fillRandom(group.cache(n), [attention, 1], 1);
    });
  }
}

export async function measureStep(
  loaded: LoadedModel,
  step: StackStep,
  options: StackOptions,
): Promise<StackRow> {
  const { limits, realExperts, runs, signal } = options;
  const timeSteps = step.count === 1 ? timeDecode : timePrefill;
  const times = await timeSteps(loaded, step, runs, signal);
  const { count, position } = step;
  const facts: StepFacts = { count, position, realExperts };
  const { graph, stamped, calls } = await timeDevice(loaded, step, facts, runs);
  const gap = (stamped - graph) / calls.length;
  const table = summarize(calls, limits.emptyLaunchNs / 1000, limits);
  const whole = median(times);
  return {
    ...step,
    ...{ step: whole, runs, graph, gap, table },
    tokensPerSecond: (step.batch * count) / (whole * 1e-6),
    sum: table.reduce((sum, row) => sum + row.microseconds, 0),
    operations: calls.length,
  };
}

/** Steps of the runner from one token to the next, the step behind enqueued ahead as the engine does. */
async function timeDecode(
  { parts: { runner }, ...loaded }: LoadedModel,
  step: StackStep,
  runs: number,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const warmups = 3; // the first step is recorded when it has run
  const times: number[] = [];
  const work = startSequences(loaded, step, runs + warmups);
  try {
    let flight = runner.start(work);
    let before = 0;
    for (let left = runs + warmups - 1; left >= 0; left--) {
      throwIfAborted(signal);
      const ahead = left > 0 && flight.canBeFollowed ? runner.start(work, flight) : undefined;
      ahead?.outputs.catch(() => {}); // told in its turn, unless this one fails
      await flight.outputs;
      const now = performance.now();
      if (left < runs) times.push((now - before) * 1000);
      before = now;
      if (left > 0) flight = ahead ?? runner.start(work);
    }
  } finally {
    release(work);
  }
  return times;
}

/** Steps of the runner, each from the call to the token. */
async function timePrefill(
  loaded: LoadedModel,
  step: StackStep,
  runs: number,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const warmups = 2;
  const times: number[] = [];
  for (let run = -warmups; run < runs; run++) {
    throwIfAborted(signal);
    const work = startSequences(loaded, step, 1);
    try {
      const start = performance.now();
      await loaded.parts.runner.start(work).outputs;
      if (run >= 0) times.push((performance.now() - start) * 1000);
    } finally {
      release(work);
    }
  }
  return times;
}

/** The step's operations as a graph, without and with readings of the clock between them. */
async function timeDevice(
  loaded: LoadedModel,
  step: StackStep,
  facts: StepFacts,
  runs: number,
): Promise<TimelineResult> {
  const { parts, groups, device } = loaded;
  const { ops, model, angles, limits } = parts;
  const work = startSequences(loaded, step, 1);
  for (const { sequence, count } of work) sequence.extend(count);
  const batch = planBatch(work, groups, limits);
  const timeline = new Timeline(device, ops, facts);
  try {
    // The arena's memory stays as it is while nothing else runs.
    const graphs = ops.arena.scope(() => {
      const tensors = uploadBatch(ops, batch);
      const last = batch.firstRows.map((row, i) => row + (work[i]?.count ?? 0) - 1);
      const ids = ops.upload(Int32Array.from(last));
      const rows = work.map(() => greedy);
      const settings = ops.float(rows.length, 4);
      ops.stream.write(settings, packSettings(rows));
      const integers = ops.upload(packIntegers(rows), rows.length, 4);
      return timeline.record(() => {
        const hidden = model.forward(makeStep(ops, tensors, angles));
        const chosen = hidden.dim(0) === rows.length ? hidden : ops.gatherFloatRows(hidden, ids);
        ops.sample(model.logits(ops, chosen), settings, integers, undefined, 0);
      });
    });
    return await timeline.replay(graphs, runs);
  } finally {
    release(work);
    timeline.close();
  }
}

/** Sequences that have `position` tokens in the cache, with room for `steps` steps. */
function startSequences(
  { groups, plan }: Pick<LoadedModel, 'groups' | 'plan'>,
  { batch, count, position }: StackStep,
  steps: number,
): StepWork[] {
  const { vocabSize } = plan.model.mla;
  return Array.from({ length: batch }, (_, index) => {
    const length = position + count * steps;
    const token = (_: unknown, i: number) => ((i + 1) * (2 * index + 1) * 7919) % vocabSize;
    const sequence = new Sequence(Array.from({ length }, token), groups);
    sequence.extend(position);
    sequence.advance(position);
    return { sequence, count, sample: greedy };
  });
}

function release(work: readonly StepWork[]): void {
  for (const { sequence } of work) sequence.release();
}
