import { placeholder, WeightChecker } from '../checkpoint/weights';
import { LozaError } from '../errors';
import type { LoadPlan } from '../load-model';
import type { Device } from '../native/device';
import type { GradientOps } from '../native/gradient-ops';
import type { DType } from '../native/tensor';
import type { RopeAngles } from '../runner/step';
import { layOut, type HostBatch } from './batch';
import type { TrainingSequence } from './data/sequences';
import { dryBytes } from './dry-run';
import { buildTrainable, type TrainableModel } from './model/trainable-model';

/** What a run takes, in bytes. */
export interface MemoryPlan {
  weights: number;
  /** Gradients and moments of what is trained. */
  optimizer: number;
  /** Hidden states that are kept, and the workspace of the largest layer. */
  activations: number;
  total: number;
  /** What the device has free. */
  available: number;
  /** Sequences that go through the model together; a batch may take several rounds. */
  sequencesAtOnce: number;
}

export interface MemoryRequest {
  plan: LoadPlan;
  device: Pick<Device, 'kind' | 'activation' | 'freeMemory'>;
  weights: number;
  optimizer: number;
  batch: number;
  sequences: readonly TrainingSequence[];
  /** Fixed by a run that is taken up again: rounds of other sizes add up in another order. */
  sequencesAtOnce?: number | undefined;
  /** Enqueues one round. */
  round: (model: TrainableModel, grads: GradientOps, angles: RopeAngles, batch: HostBatch) => void;
}

/** Tokens that are worth computing together: more keep a device no busier. */
const rowsAtOnce = { cpu: 4096, cuda: 32_768 } as const;
/** A share of the free memory that is left to others, and to what operations take for themselves. */
const usable = 0.9;

/**
 * How many sequences go through the model together, and what memory that takes: found by going
 * through a step without computing it.
 *
 * @throws LozaError ERR_LOZA_OUT_OF_MEMORY if not even one fits.
 */
export function planMemory(request: MemoryRequest): MemoryPlan {
  const { device, weights, optimizer, batch, sequences } = request;
  const largest = largestOf(sequences);
  const most = Math.floor(rowsAtOnce[device.kind] / largest.tokens.length);
  const available = device.freeMemory();
  let sequencesAtOnce = request.sequencesAtOnce ?? Math.min(Math.max(most, 1), batch);
  for (;;) {
    const activations = roundBytes(request, device.activation, largest, sequencesAtOnce);
    const total = weights + optimizer + activations;
    const plan = { weights, optimizer, activations, total, available, sequencesAtOnce };
    if (total <= available * usable) return plan;
    const isFixed = request.sequencesAtOnce !== undefined;
    if (sequencesAtOnce === 1 || isFixed) throw tooLarge(plan, largest.tokens.length);
    sequencesAtOnce = Math.ceil(sequencesAtOnce / 2);
  }
}

/** A sequence as long as the longest, with as many targets as the one that has most. */
function largestOf(sequences: readonly TrainingSequence[]): TrainingSequence {
  const most = (of: (one: TrainingSequence) => number) =>
    sequences.reduce((largest, one) => Math.max(largest, of(one)), 0);
  const length = most(({ tokens }) => tokens.length);
  const targets = new Uint8Array(length);
  targets.fill(1, length - most((one) => one.targets.reduce((sum, target) => sum + target, 0)));
  return { tokens: new Int32Array(length), targets };
}

function roundBytes(
  { plan, round }: MemoryRequest,
  activation: DType,
  largest: TrainingSequence,
  sequences: number,
): number {
  const model = buildTrainable(plan, new WeightChecker(plan.checkpoint));
  const pairs = plan.table.inverseFrequencies.length;
  const inverseFrequencies = placeholder('f32', [2, pairs]);
  const angles = { inverseFrequencies, attentionScale: 1, exact: false };
  const batch = layOut(new Array<TrainingSequence>(sequences).fill(largest));
  return dryBytes(activation, (grads) => round(model, grads, angles, batch));
}

/** Takes the arena's memory in one piece: grown bit by bit it would be up to twice as large. */
export function reserve({ ops }: GradientOps, { activations }: MemoryPlan): void {
  ops.arena.scope(() => ops.float(Math.ceil(activations / 4)));
}

function tooLarge(plan: MemoryPlan, length: number): LozaError {
  const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  const { weights, optimizer, activations, total, available } = plan;
  const parts = [
    `weights ${gib(weights)}`,
    ...(optimizer > 0 ? [`gradients and moments ${gib(optimizer)}`] : []),
    `one sequence of ${length} tokens ${gib(activations)}`,
  ];
  const problem = `This needs ${gib(total)} (${parts.join(', ')}), but ${gib(available)} are free`;
  return new LozaError('ERR_LOZA_OUT_OF_MEMORY', problem, {
    value: total,
    hint: 'Ask for shorter sequences, or use a device with more memory',
  });
}
