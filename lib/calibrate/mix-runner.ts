import { throwIfAborted } from '../errors';
import { layOut } from '../train/batch';
import type { TrainingSequence } from '../train/data/sequences';
import type { Session } from '../train/session';
import { untilAborted } from '../train/until-aborted';
import { MixedModel, type MixOptions } from './mixed-model';

/** Sums over the labelled tokens of the sequences so far: of the full model, then of each ablation. */
export interface AblationState {
  sequences: number;
  labelled: number;
  sums: number[];
}

/** Runs a mixed model over sequences, some at a time, and brings back sums in double precision. */
export class MixRunner {
  private readonly mixed: MixedModel;

  constructor(
    private readonly session: Session,
    private readonly sequences: readonly TrainingSequence[],
    options: MixOptions,
    private readonly atOnce: number,
  ) {
    this.mixed = new MixedModel(session.model, session.angles, options);
  }

  /** Mean loss over the labelled tokens of these sequences, and its gradient by the alphas. */
  async gradient(
    indices: readonly number[],
    alphas: Float32Array,
    signal: AbortSignal | undefined,
  ): Promise<{ loss: number; gradient: number[] }> {
    const { grads } = this.session;
    const { ops } = grads;
    const batches = this.batches(indices);
    const labelled = batches.reduce((sum, batch) => sum + batch.labelled.length, 0);
    let loss = 0;
    const gradient = new Array<number>(alphas.length).fill(0);
    for (const batch of batches) {
      throwIfAborted(signal);
      const reads = ops.arena.scope(() => {
        const result = this.mixed.gradient(grads, batch, 1 / labelled, alphas);
        const { stream } = ops;
        return Promise.all([stream.readFloats(result.loss), stream.readFloats(result.dAlphas)]);
      });
      const [losses, slopes] = await untilAborted(reads, signal);
      loss += sumOf(losses);
      slopes.forEach((slope, i) => (gradient[i] = (gradient[i] ?? 0) + slope));
    }
    return { loss, gradient };
  }

  /** Goes on with the sequences after those that are in `state`, one round. */
  async ablate(
    state: AblationState,
    of: number,
    attentions: readonly number[],
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { grads, plan } = this.session;
    const { ops } = grads;
    const perLayer = plan.model.attentions / plan.model.layers;
    const to = Math.min(state.sequences + this.atOnce, of);
    const batch = layOut(this.sequences.slice(state.sequences, to));
    throwIfAborted(signal);
    const reads = ops.arena.scope(() => {
      const losses = this.mixed.ablations(grads, batch, 1, attentions, perLayer);
      return Promise.all(Array.from(losses, (loss) => ops.stream.readFloats(loss)));
    });
    const losses = await untilAborted(reads, signal);
    state.sums = losses.map((loss, i) => (state.sums[i] ?? 0) + sumOf(loss));
    state.labelled += batch.labelled.length;
    state.sequences = to;
  }

  private batches(indices: readonly number[]) {
    const chosen = indices.map((index) => this.sequences[index] as TrainingSequence);
    const rounds = Math.ceil(chosen.length / this.atOnce);
    return Array.from({ length: rounds }, (_, i) =>
      layOut(chosen.slice(i * this.atOnce, (i + 1) * this.atOnce)),
    );
  }
}

function sumOf(values: Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value;
  return sum;
}
