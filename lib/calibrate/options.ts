import { attentionBlock } from '../checkpoint/streaming-config';
import { configCaps } from '../checkpoint/config';
import { checkObject, type LoadProgress } from '../load-options';
import { choice, folder, invalid, real, stringList, whole } from '../train/check-options';
import type { LossOn } from '../train/data/examples';
import type { ReadingProgress } from '../train/data/load-data';
import type { FullTerm, Objective } from './mixed-model';

/** How attentions are chosen. 'gradient' is LoZA; the others are what it is compared with. */
export type CalibrateMethod = 'gradient' | 'ablation' | 'interleaved' | 'random';

export interface CalibrateOptions {
  /** Data files: .jsonl with {"text"} or {"messages"} a line, or .txt. Not read by 'interleaved' and 'random'. */
  data?: readonly string[] | undefined;
  /** The folder of the new checkpoint. It must not hold anything but an unfinished run like this one. */
  out: string;
  /** Default 'gradient'. */
  method?: CalibrateMethod | undefined;
  /** Share of the attentions that become streaming (default 0.5). */
  sparsity?: number | undefined;
  /** Blocks of 128 tokens that streaming attentions keep at the start (default 1) and at the end (default 7). */
  sinkBlocks?: number | undefined;
  localBlocks?: number | undefined;
  /** Tokens of a sequence (default 4,096, or the model's positions if those are fewer). */
  sequenceLength?: number | undefined;
  /** Stretches the model's positions by YaRN, here and in the config that is written. */
  yarnFactor?: number | undefined;
  /** Optimiser steps of a round (default 200), and sequences of a step (default 8). */
  steps?: number | undefined;
  batch?: number | undefined;
  /** Peak of the learning rate (default 0.02). */
  learningRate?: number | undefined;
  /** Factor of the mean alpha in the loss (default 0.05); adapted unless `rounds` is 1. */
  penalty?: number | undefined;
  /** Most rounds of training, each with another penalty, until the alphas rank (default 4). */
  rounds?: number | undefined;
  /** Decides the order of the data, and 'random' patterns (default 0). */
  seed?: number | undefined;
  /** Which tokens count: 'auto' answers if the data have any, else all. */
  lossOn?: LossOn | 'auto' | undefined;
  /** 'distill' (default): reach the full model's final hidden states. 'next-token': cross-entropy. */
  objective?: Objective | undefined;
  /** 'exact' (default), or 'detached': full attention as the untouched model has it, without gradient. */
  fullTerm?: FullTerm | undefined;
  /** Sequences that ablations are measured with (default 32). */
  ablationSequences?: number | undefined;
  /** Alphas this close to the cut count as tied: their ablations decide (default 0.02). */
  tieWidth?: number | undefined;
  /** Of 'interleaved': the attentions that stream (default 'odd'). */
  parity?: 'even' | 'odd' | undefined;
  device?: 'auto' | 'cpu' | 'cuda' | undefined;
  dtype?: 'auto' | 'float32' | 'bfloat16' | undefined;
  signal?: AbortSignal | undefined;
  onProgress?: ((progress: CalibrateProgress) => void) | undefined;
}

/** How far a calibration is. */
export type CalibrateProgress =
  | ReadingProgress
  | ({ phase: 'loading' } & LoadProgress)
  | { phase: 'planned'; bytes: number; sequences: number; tokens: number; targets: number }
  | {
      phase: 'training';
      round: number;
      step: number;
      steps: number;
      penalty: number;
      /** Of the step, without the penalty. */
      loss: number;
      alphas: readonly number[];
    }
  | { phase: 'ablation'; done: number; total: number };

export interface ResolvedCalibrateOptions {
  data: readonly string[];
  out: string;
  method: CalibrateMethod;
  sparsity: number;
  sinkBlocks: number;
  localBlocks: number;
  sequenceLength: number;
  yarnFactor: number | undefined;
  steps: number;
  batch: number;
  learningRate: number;
  penalty: number;
  rounds: number;
  seed: number;
  lossOn: LossOn | 'auto';
  objective: Objective;
  fullTerm: FullTerm;
  ablationSequences: number;
  tieWidth: number;
  parity: 'even' | 'odd';
  device: 'auto' | 'cpu' | 'cuda';
  dtype: 'auto' | 'float32' | 'bfloat16';
  signal: AbortSignal | undefined;
  onProgress: (progress: CalibrateProgress) => void;
}

const names = [
  ...['data', 'out', 'method', 'sparsity', 'sinkBlocks', 'localBlocks', 'sequenceLength', 'steps'],
  ...['batch', 'learningRate', 'penalty', 'rounds', 'seed', 'lossOn', 'objective', 'fullTerm'],
  ...['ablationSequences', 'tieWidth', 'parity', 'device', 'dtype', 'signal', 'onProgress'],
  'yarnFactor',
];

/** Throws ERR_LOZA_INVALID_ARG unless it is an object of known options. */
export function checkNames(options: unknown): void {
  checkObject('The options of calibrate', options, names);
}

/** Fills in the defaults. Throws ERR_LOZA_INVALID_ARG with the option's name. */
export function resolveCalibrateOptions(
  options: CalibrateOptions,
  maxPosition: number,
): ResolvedCalibrateOptions {
  checkNames(options);
  const method = choice('method', options.method, [
    'gradient',
    'ablation',
    'interleaved',
    'random',
  ]);
  const data = stringList('data', options.data ?? []);
  const needsData = method === 'gradient' || method === 'ablation';
  if (needsData && data.length === 0) throw invalid('data', 'at least one file', data);
  if (!needsData && data.length > 0) throw invalid('data', `none with method "${method}"`, data);
  const blocks = configCaps.positions / attentionBlock;
  const many = 2 ** 30;
  return {
    data,
    out: folder(options.out),
    method,
    sparsity: real('sparsity', options.sparsity ?? 0.5, 0, 1),
    sinkBlocks: whole('sinkBlocks', options.sinkBlocks ?? 1, 1, blocks),
    localBlocks: whole('localBlocks', options.localBlocks ?? 7, 1, blocks),
    sequenceLength: whole(
      'sequenceLength',
      options.sequenceLength ?? Math.min(4096, maxPosition),
      2,
      maxPosition,
    ),
    yarnFactor: options.yarnFactor,
    steps: whole('steps', options.steps ?? 200, 1, many),
    batch: whole('batch', options.batch ?? 8, 1, many),
    learningRate: real('learningRate', options.learningRate ?? 0.02, 0, 1),
    penalty: real('penalty', options.penalty ?? 0.05, 0, 1e6),
    rounds: whole('rounds', options.rounds ?? 4, 1, 100),
    seed: whole('seed', options.seed ?? 0, 0, Number.MAX_SAFE_INTEGER),
    lossOn: choice('lossOn', options.lossOn, ['auto', 'all', 'answers']),
    objective: choice('objective', options.objective, ['distill', 'next-token']),
    fullTerm: choice('fullTerm', options.fullTerm, ['exact', 'detached']),
    ablationSequences: whole('ablationSequences', options.ablationSequences ?? 32, 1, many),
    tieWidth: real('tieWidth', options.tieWidth ?? 0.02, 0, 1),
    parity: choice('parity', options.parity, ['odd', 'even']),
    device: choice('device', options.device, ['auto', 'cpu', 'cuda']),
    dtype: choice('dtype', options.dtype, ['auto', 'float32', 'bfloat16']),
    signal: options.signal,
    onProgress: options.onProgress ?? (() => {}),
  };
}
