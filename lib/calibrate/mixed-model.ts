import type { GradientOps } from '../native/gradient-ops';
import type { KeyRange } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { RopeAngles } from '../runner/step';
import { uploadBatch, uploadLabels, type HostBatch } from '../train/batch';
import type { TrainableModel } from '../train/model/trainable-model';
import { distillationLoss, finalStates, nextTokenLoss } from '../train/objectives';
import { copyOf, zeros, type AttentionMode, type Pass } from '../train/pass';

/** What the alphas are trained for. */
export type Objective = 'distill' | 'next-token';
/** Whether the gradient goes through full attention, or its result is the untouched model's. */
export type FullTerm = 'exact' | 'detached';

export interface MixOptions {
  /** What streaming attentions see. */
  range: KeyRange;
  objective: Objective;
  fullTerm: FullTerm;
}

/** The loss of each labelled row, weighted, and the gradient of the alphas. */
export interface MixGradient {
  loss: Tensor; // f32 [labelled]
  dAlphas: Tensor; // f32 [attentions]
}

/**
 * A frozen model whose attentions are each mixed by a factor, which alone is trained:
 * alpha * full + (1 - alpha) * streaming (LoZA, arXiv 2512.23966, equation 3).
 */
export class MixedModel {
  constructor(
    private readonly model: TrainableModel,
    private readonly angles: RopeAngles,
    private readonly options: MixOptions,
  ) {}

  /** Enqueues one round, forward and back. `weight` is what the loss of a row counts for. */
  gradient(
    grads: GradientOps,
    batch: HostBatch,
    weight: number,
    alphas: Float32Array,
  ): MixGradient {
    const { ops } = grads;
    const { objective, fullTerm } = this.options;
    const loss = ops.float(batch.labelled.length);
    const dAlphas = zeros(ops, alphas.length);
    ops.arena.scope(() => {
      const shared = { ...uploadBatch(grads, batch, this.angles), gradientOf: () => undefined };
      const labels = uploadLabels(grads, batch, weight);
      const { head } = this.model;
      const [teacher, student] = this.passes(shared, alphas, dAlphas);
      const passes = fullTerm === 'detached' ? [teacher, student] : [student];
      const kept: Tensor[][] = [];
      if (objective === 'next-token') {
        const x = this.model.forward(passes, kept).at(-1) as Tensor;
        const d = zeros(ops, ...x.shape);
        ops.cast(loss, nextTokenLoss(student, head, x, labels, d));
        this.model.backward(passes, kept, d);
        return;
      }
      const target = ops.activation(labels.count, head.width);
      if (fullTerm === 'exact') {
        ops.arena.scope(() => {
          const [x] = this.model.forward([teacher]) as [Tensor];
          finalStates(teacher, head, x, target, labels.rows);
        });
      }
      const streams = this.model.forward(passes, kept);
      const [first, x] = [streams[0] as Tensor, streams.at(-1) as Tensor];
      if (fullTerm === 'detached') finalStates(teacher, head, first, target, labels.rows);
      const d = zeros(ops, ...x.shape);
      ops.cast(loss, distillationLoss(student, head, x, target, labels, d));
      this.model.backward(passes, kept, d);
    });
    return { loss, dAlphas };
  }

  /** The pass of the full model, and the one that is mixed. */
  private passes(
    shared: Omit<Pass, 'attention'>,
    alphas: Float32Array,
    dAlphas: Tensor,
  ): [teacher: Pass, student: Pass] {
    const { ops } = shared;
    const { range, fullTerm } = this.options;
    const detached = fullTerm === 'detached';
    const terms = new Map<number, Tensor>();
    const mix = ops.float(alphas.length);
    ops.stream.write(mix, alphas);
    const full = (i: number): AttentionMode => ({
      kind: 'full',
      keep: detached ? (out) => terms.set(i, out) : undefined,
    });
    const mixed = (i: number): AttentionMode => ({
      kind: 'mixed',
      range,
      alpha: mix.slice(0, i, i + 1),
      dAlpha: dAlphas.slice(0, i, i + 1),
      full: detached ? () => terms.get(i) as Tensor : undefined,
    });
    return [
      { ...shared, attention: full },
      { ...shared, attention: mixed },
    ];
  }

  /**
   * Enqueues what streaming costs each attention alone: the next-token loss of the full model, and
   * then with attention 0, 1, ... streaming, f32 [labelled] each. Layers below the one that changes
   * are not computed again.
   */
  *ablations(
    grads: GradientOps,
    batch: HostBatch,
    weight: number,
    attentions: readonly number[],
    perLayer: number,
  ): Generator<Tensor> {
    const { ops } = grads;
    const { head, layers } = this.model;
    const { range } = this.options;
    const shared = { ...uploadBatch(grads, batch, this.angles), gradientOf: () => undefined };
    const labels = uploadLabels(grads, batch, weight);
    const full: Pass = { ...shared, attention: () => ({ kind: 'full' }) };
    const kept: Tensor[][] = [];
    const [behind] = this.model.forward([full], kept) as [Tensor];
    yield nextTokenLoss(full, head, behind, labels);
    for (const one of attentions) {
      const attention = (i: number): AttentionMode =>
        i === one ? { kind: 'streaming', range } : { kind: 'full' };
      const pass: Pass = { ...shared, attention };
      const loss = ops.float(labels.count);
      ops.arena.scope(() => {
        const first = Math.floor(one / perLayer);
        const x = copyOf(ops, kept[first]?.[0] as Tensor);
        for (let index = first; index < layers.length; index++) {
          this.model.forwardLayer(index, [pass], [x]);
        }
        ops.cast(loss, nextTokenLoss(pass, head, x, labels));
      });
      yield loss;
    }
  }
}
