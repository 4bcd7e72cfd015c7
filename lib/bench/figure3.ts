import { throwIfAborted } from '../errors';
import type { LoadedModel, LoadPlan } from '../load-model';
import type { DeviceKind } from '../native/binding';
import { fullRange, type KeyRange } from '../native/ops';
import { planMemory, runArms, type Arm, type ArmMemory } from './ab';
import { decodeKernel, paperRange } from './cases/decode';
import type { DryModel } from './dry-model';
import type { GateVerdict } from './gate';
import type { BenchTest } from './grammar';
import type { MeasuredLimits } from './kernels';
import { roofline, type Limits } from './limits';
import { panelContexts, paperPoint, type PanelName } from './paper';
import { timeGeneration, timeStep } from './run-tests';
import { greedy, seat } from './sequences';
import { median, Stopwatch, type Effort } from './stopwatch';
import { randomIntegers } from './statistics';
import { Workbench } from './workbench';

/** Both arms at one context, in seconds. */
export interface FigurePoint {
  context: number;
  batch: number;
  full: number;
  loza: number;
  /** Full over loza. */
  speedup: number;
  /** Of the time, what the operations need at the limits; undefined in a prediction. */
  fullOfLimit: number | undefined;
  lozaOfLimit: number | undefined;
  paper: number | undefined;
}

export type FigurePanels = Record<PanelName, FigurePoint[]>;

export interface FigurePlan {
  from: number;
  to: number;
  /** Prompt tokens of a step. */
  chunk: number;
  /** Decoding sequences at a context: what was asked for, or what fits. */
  batchAt: (context: number) => number;
  kernelBatch: number;
  /** Decode steps that are timed at a context. */
  steps: number;
  seed: number;
}

export interface MeasuredFigure {
  gate: GateVerdict;
  panels: FigurePanels;
  memory: (ArmMemory & { arm: string })[];
}

interface Watching {
  signal?: AbortSignal | undefined;
  onPoint?: (() => void) | undefined;
}

const warmups = 2; // the first decode step is recorded when it has run
/** Chunks up to here are read as often as this, and their median counts; later ones once. */
const repeats = { chunks: 4, passes: 3, shortPrompts: 7 };

/** The tests that need as much memory as the figure does. */
export function figureTests({ from, to, chunk, batchAt, steps }: FigurePlan): BenchTest[] {
  const prefill = { prompt: to, generate: 0, depth: 0, batch: 1, chunk };
  const decode = panelContexts('decode', from, to).map((context) => {
    const generate = Math.min(steps + warmups, context);
    return { prompt: 0, generate, depth: context - generate, batch: batchAt(context), chunk };
  });
  return [prefill, ...decode];
}

/** Times the three panels: the kernel alone, then the model in the arms full and loza. */
export async function measureFigure(
  dir: string,
  arms: readonly [full: Arm, loza: Arm],
  plan: FigurePlan,
  {
    kind,
    limits,
    effort,
  }: { kind: DeviceKind; limits: MeasuredLimits | undefined; effort: Effort },
  watching: Watching,
): Promise<MeasuredFigure> {
  const kernel = await measureKernels(arms[1].plan, plan, { kind, limits, effort }, watching);
  const tests = figureTests(plan);
  const { gate, results } = await runArms(dir, arms, plan.seed, async (loaded, arm) => {
    const prefill = await measurePrefill(loaded, plan, watching);
    const decode = await measureDecode(loaded, plan, watching);
    const { peak } = loaded.device.memory();
    return { prefill, decode, memory: { ...planMemory(arm, tests), peak, arm: arm.name } };
  });
  const [full, loza] = results;
  const panel = (name: 'prefill' | 'decode'): FigurePoint[] => {
    if (full === undefined || loza === undefined) return [];
    const times = { full: full[name], loza: loza[name] };
    const least = { full: leastOf(arms[0].dry), loza: leastOf(arms[1].dry) };
    return joinArms(name, plan, times, {
      full: limits && least.full(name, plan, limits),
      loza: limits && least.loza(name, plan, limits),
    });
  };
  const panels = { kernel, prefill: panel('prefill'), decode: panel('decode') };
  return { gate, panels, memory: results.map(({ memory }) => memory) };
}

/** The same by rooflines alone: no launches, no gaps, every operation at its limit. */
export function predictFigure(
  arms: readonly [full: Arm, loza: Arm],
  plan: FigurePlan,
  limits: Limits,
): FigurePanels {
  const none = { full: undefined, loza: undefined };
  const model = (name: 'prefill' | 'decode') => {
    const [full, loza] = arms.map(({ dry }) => leastOf(dry)(name, plan, limits));
    return joinArms(name, plan, { full: full ?? [], loza: loza ?? [] }, none);
  };
  const rows = kernelRows(arms[1].plan, plan);
  const least = rows.map(({ full, loza }) => {
    const seconds = (row: KernelPair['full']) =>
      roofline(decodeKernel(row).work(2), limits).seconds;
    return { full: seconds(full), loza: seconds(loza) };
  });
  const times = { full: least.map(({ full }) => full), loza: least.map(({ loza }) => loza) };
  return {
    kernel: joinArms('kernel', plan, times, none),
    prefill: model('prefill'),
    decode: model('decode'),
  };
}

/** Seconds at the limits, by panel. */
const leastOf =
  (dry: DryModel) =>
  (name: 'prefill' | 'decode', { from, to, chunk, batchAt }: FigurePlan, limits: Limits) => {
    const contexts = panelContexts(name, from, to);
    if (name === 'prefill') return dry.leastPrefillSeconds(contexts, chunk, limits);
    return contexts.map((context) => dry.leastSeconds(batchAt(context), 1, context - 1, limits));
  };

interface ByArm<T> {
  full: T;
  loza: T;
}

function joinArms(
  name: PanelName,
  { from, to, batchAt, kernelBatch }: FigurePlan,
  times: ByArm<readonly number[]>,
  least: ByArm<readonly (number | undefined)[] | undefined>,
): FigurePoint[] {
  const batch = { kernel: () => kernelBatch, prefill: () => 1, decode: batchAt }[name];
  return panelContexts(name, from, to).map((context, i) => {
    const [full, loza] = [times.full[i] ?? NaN, times.loza[i] ?? NaN];
    const share = (seconds: number | undefined, time: number) => seconds && seconds / time;
    return {
      ...{ context, batch: batch(context), full, loza, speedup: full / loza },
      fullOfLimit: share(least.full?.[i], full),
      lozaOfLimit: share(least.loza?.[i], loza),
      paper: paperPoint(name, context),
    };
  });
}

type KernelPair = ByArm<Parameters<typeof decodeKernel>[0]>;

function kernelRows({ model, pattern }: LoadPlan, plan: FigurePlan): KernelPair[] {
  const { heads, kvLoraRank: latent, ropeDim: rope } = model.mla;
  const { sinkBlocks, localBlocks } = pattern ?? paperRange;
  return panelContexts('kernel', plan.from, plan.to).map((context) => {
    const row = (range: KeyRange) => {
      return { range, heads, latent, rope, queries: 1, batch: plan.kernelBatch, context };
    };
    return { full: row(fullRange), loza: row({ sinkBlocks, localBlocks }) };
  });
}

async function measureKernels(
  model: LoadPlan,
  plan: FigurePlan,
  { kind, limits, effort }: { kind: DeviceKind; limits: Limits | undefined; effort: Effort },
  { signal, onPoint }: Watching,
): Promise<FigurePoint[]> {
  const bench = new Workbench(kind);
  const time = async (row: KernelPair['full']): Promise<number> => {
    throwIfAborted(signal);
    const { sets, run } = decodeKernel(row).prepare(bench);
    await bench.check(() => run(0));
    const { nanoseconds } = await new Stopwatch(bench, effort).time(sets, run);
    bench.clear();
    return nanoseconds * 1e-9;
  };
  const least = (row: KernelPair['full']) =>
    limits && roofline(decodeKernel(row).work(bench.activationBytes), limits).seconds;
  try {
    const times: ByArm<number[]> = { full: [], loza: [] };
    const limit: ByArm<(number | undefined)[]> = { full: [], loza: [] };
    for (const pair of kernelRows(model, plan)) {
      for (const arm of ['full', 'loza'] as const) {
        times[arm].push(await time(pair[arm]));
        limit[arm].push(least(pair[arm]));
      }
      onPoint?.();
    }
    return joinArms('kernel', plan, times, limit);
  } finally {
    bench.close();
  }
}

/**
 * Seconds to read prompts, by length. A prompt of many chunks contains the shorter ones: one pass
 * to the longest gives all, its chunks' times summed up.
 */
async function measurePrefill(
  loaded: LoadedModel,
  plan: FigurePlan,
  watching: Watching,
): Promise<number[]> {
  const { from, to, chunk } = plan;
  const contexts = panelContexts('prefill', from, to);
  const times: number[][] = Array.from({ length: Math.floor(to / chunk) }, () => []);
  const early = Math.min(times.length, repeats.chunks) * chunk;
  const read = (length: number, step: number) =>
    readPrompt(loaded, { length, step, contexts, seed: plan.seed }, watching);
  if (early > 0) await read(chunk, chunk); // the warm-up
  for (let pass = 0; pass < repeats.passes && early > 0; pass++) {
    const part = await read(pass === 0 ? Math.floor(to / chunk) * chunk : early, chunk);
    part.forEach((seconds, i) => times[i]?.push(seconds));
  }
  const short: number[] = [];
  for (const context of contexts.filter((one) => one < chunk)) {
    const runs: number[] = [];
    for (let run = -1; run < repeats.shortPrompts; run++) {
      const [seconds = NaN] = await read(context, context);
      if (run >= 0) runs.push(seconds);
    }
    short.push(median(runs));
  }
  return contexts.map((context, i) => {
    watching.onPoint?.();
    const chunks = times.slice(0, context / chunk).map(median);
    return context < chunk ? (short[i] ?? NaN) : chunks.reduce((sum, seconds) => sum + seconds, 0);
  });
}

/** Seconds of each step of one prompt; where a context ends, the first new token is sampled. */
async function readPrompt(
  loaded: LoadedModel,
  what: { length: number; step: number; contexts: readonly number[]; seed: number },
  { signal }: Watching,
): Promise<number[]> {
  const { length, step, contexts, seed } = what;
  const draw = randomIntegers(seed, loaded.plan.model.mla.vocabSize);
  const tokens = () => Array.from({ length }, draw);
  const seating = { batch: 1, depth: 0, tokens };
  const [sequence] = seat(loaded.groups, seating);
  if (sequence === undefined) return [];
  const times: number[] = [];
  try {
    for (let end = step; end <= length; end += step) {
      throwIfAborted(signal);
      const work = { sequence, count: step };
      const sampled = contexts.includes(end) ? { ...work, sample: greedy } : work;
      times.push((await timeStep(loaded, [sampled])) / 1000);
    }
    return times;
  } finally {
    sequence.release();
  }
}

/** Seconds of a decode step, by context; the cache holds random rows up to there. */
async function measureDecode(
  loaded: LoadedModel,
  plan: FigurePlan,
  { signal, onPoint }: Watching,
): Promise<number[]> {
  const { groups, plan: model } = loaded;
  const medians: number[] = [];
  for (const context of panelContexts('decode', plan.from, plan.to)) {
    const count = Math.min(plan.steps + warmups, context);
    const draw = randomIntegers(plan.seed, model.model.mla.vocabSize);
    const tokens = () => Array.from({ length: count }, draw);
    const batch = plan.batchAt(context);
    const depth = context - count; // so that steps stay within a bucket of recorded graphs
    const sequences = seat(groups, { batch, depth, tokens });
    let times: number[];
    try {
      times = await timeGeneration(loaded, sequences, count, signal);
    } finally {
      for (const sequence of sequences) sequence.release();
    }
    medians.push(median(times.slice(warmups)) / 1000);
    onPoint?.();
  }
  return medians;
}
