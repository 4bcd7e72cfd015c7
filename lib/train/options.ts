import { checkObject, type LoadProgress } from '../load-options';
import { choice, folder, invalid, real, stringList, whole } from './check-options';
import type { LossOn } from './data/examples';
import type { ReadingProgress } from './data/load-data';

export interface TrainOptions {
  /** Data files: .jsonl with {"text"} or {"messages"} a line, or .txt. */
  data: readonly string[];
  /** The folder of the new checkpoint. It must not hold anything but an unfinished run like this one. */
  out: string;
  /** Which attentions stream while it is trained: 'auto' (default) as the checkpoint says, or 'full'. */
  attention?: 'auto' | 'full' | undefined;
  /** Tokens of a sequence (default 4,096, or the model's positions if those are fewer). */
  sequenceLength?: number | undefined;
  /** Stretches the model's positions by YaRN, here and in the config that is written. */
  yarnFactor?: number | undefined;
  /** Optimiser steps (default 200), and sequences of a step (default 8). */
  steps?: number | undefined;
  batch?: number | undefined;
  /** Peak of the learning rate (default 1e-4). */
  learningRate?: number | undefined;
  /** Decay of the matrices, times the learning rate (default 0.1). */
  weightDecay?: number | undefined;
  /** The norm that the gradient is brought down to (default 1); 0 leaves it. */
  clip?: number | undefined;
  /**
   * What the correction biases of routers change by after each step, so that the loads of experts come
   * together (default 0: not at all). DeepSeek-V3 was trained with 0.001.
   */
  balanceRate?: number | undefined;
  /** Decides the order of the data (default 0). */
  seed?: number | undefined;
  /** Which tokens count (default 'all'); 'auto': answers if the data have any. */
  lossOn?: LossOn | 'auto' | undefined;
  /** Steps between two checkpoints (default 100). */
  saveEvery?: number | undefined;
  device?: 'auto' | 'cpu' | 'cuda' | undefined;
  dtype?: 'auto' | 'float32' | 'bfloat16' | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: TrainProgress) => void) | undefined;
}

/** How far training is. */
export type TrainProgress =
  | ReadingProgress
  | ({ phase: 'loading' } & LoadProgress)
  | { phase: 'planned'; bytes: number; sequences: number; tokens: number; targets: number }
  | {
      phase: 'training';
      step: number;
      steps: number;
      loss: number;
      /** Norm of the gradient before it was clipped. */
      norm: number;
      learningRate: number;
      /** With `balanceRate`: times the mean load that the busiest expert had, in the mean of layers. */
      busiest: number | undefined;
    }
  | { phase: 'saving'; step: number };

export type ResolvedTrainOptions = {
  [Key in Exclude<keyof TrainOptions, 'signal' | 'onProgress' | 'yarnFactor'>]-?: Exclude<
    TrainOptions[Key],
    undefined
  >;
} & {
  yarnFactor: number | undefined;
  signal: AbortSignal | undefined;
  onProgress: (progress: TrainProgress) => void;
};

const names = [
  ...['data', 'out', 'attention', 'sequenceLength', 'steps', 'batch', 'learningRate'],
  ...['weightDecay', 'clip', 'seed', 'lossOn', 'saveEvery', 'device', 'dtype', 'signal'],
  ...['onProgress', 'yarnFactor', 'balanceRate'],
];

/** Throws ERR_LOZA_INVALID_ARG unless it is an object of known options. */
export function checkNames(options: unknown): void {
  checkObject('The options of train', options, names);
}

/** Fills in the defaults. Throws ERR_LOZA_INVALID_ARG with the option's name. */
export function resolveTrainOptions(
  options: TrainOptions,
  maxPosition: number,
): ResolvedTrainOptions {
  checkNames(options);
  const data = stringList('data', options.data);
  if (data.length === 0) throw invalid('data', 'at least one file', data);
  const { sequenceLength = Math.min(4096, maxPosition) } = options;
  const many = 2 ** 30;
  return {
    data,
    out: folder(options.out),
    attention: choice('attention', options.attention, ['auto', 'full']),
    sequenceLength: whole('sequenceLength', sequenceLength, 2, maxPosition),
    yarnFactor: options.yarnFactor,
    steps: whole('steps', options.steps ?? 200, 1, many),
    batch: whole('batch', options.batch ?? 8, 1, many),
    learningRate: real('learningRate', options.learningRate ?? 1e-4, 0, 1),
    weightDecay: real('weightDecay', options.weightDecay ?? 0.1, 0, 1e3),
    clip: real('clip', options.clip ?? 1, 0, 1e9),
    balanceRate: real('balanceRate', options.balanceRate ?? 0, 0, 1),
    seed: whole('seed', options.seed ?? 0, 0, Number.MAX_SAFE_INTEGER),
    lossOn: choice('lossOn', options.lossOn, ['all', 'answers', 'auto']),
    saveEvery: whole('saveEvery', options.saveEvery ?? 100, 1, many),
    device: choice('device', options.device, ['auto', 'cpu', 'cuda']),
    dtype: choice('dtype', options.dtype, ['auto', 'float32', 'bfloat16']),
    signal: options.signal,
    onProgress: options.onProgress ?? (() => {}),
  };
}
