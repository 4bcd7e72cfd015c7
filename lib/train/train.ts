import { readSafetensorsHeader } from '../checkpoint/safetensors';
import { LozaError, throwIfAborted } from '../errors';
import type { LoadPlan } from '../load-model';
import type { GradientOps } from '../native/gradient-ops';
import type { Tensor } from '../native/tensor';
import type { RopeAngles } from '../runner/step';
import { writeAtomically } from './atomic-file';
import { layOut, uploadBatch, uploadLabels, type HostBatch } from './batch';
import { loadData } from './data/load-data';
import { SequenceOrder, type TrainingSequence } from './data/sequences';
import { fingerprintOf } from './fingerprint';
import { planMemory, reserve } from './memory-plan';
import type { TrainableModel } from './model/trainable-model';
import { nextTokenLoss } from './objectives';
import {
  checkNames,
  resolveTrainOptions,
  type ResolvedTrainOptions,
  type TrainOptions,
} from './options';
import { checkTrainable, TrainableWeights, trainingBytes } from './parameters';
import { zeros, type AttentionMode, type Pass } from './pass';
import { RouterBalance } from './router-balance';
import { RunFolder } from './run-folder';
import { learningRate } from './schedule';
import { openDevice, openSession, planTraining, type Session } from './session';
import { untilAborted } from './until-aborted';
import { writeConfig } from './write-config';

/** What came of a training: the content of training.json. */
export interface TrainingReport {
  /** Mean loss of each step over its labelled tokens, before the step changed anything. */
  losses: readonly number[];
  /** One character an attention: '1' = streaming, '0' = full. */
  layerType: string;
  options: Readonly<Record<string, unknown>>;
  data: { hash: string; sequences: number; tokens: number; targets: number };
}

interface TrainState {
  sequencesAtOnce: number;
  losses: number[];
}

const stateName = 'training-state.safetensors';
const beta1 = 0.9;
const beta2 = 0.95;
const eps = 1e-8;

/**
 * Trains all weights of a checkpoint on, with the attentions that it says (or with full ones):
 * AdamW over fp32 masters. `out` gets a checkpoint with the same names and dtypes, every `saveEvery`
 * steps and at the end. A run that was stopped goes on from its last checkpoint when it is started
 * again, to the same bits.
 *
 * @throws LozaError ERR_LOZA_INVALID_ARG (also when the loss is no number any more), ERR_LOZA_DATA,
 * ERR_LOZA_OUT_OF_MEMORY with the memory that is needed, ERR_LOZA_ABORTED, and those of loading.
 */
export async function train(dir: string, options: TrainOptions): Promise<TrainingReport> {
  checkNames(options);
  const { attention = 'auto', yarnFactor } = options;
  const plan = await planTraining(dir, attention, options.signal, yarnFactor);
  checkTrainable(plan.checkpoint);
  const resolved = resolveTrainOptions(options, plan.maxPosition);
  const { signal, onProgress, steps, batch } = resolved;
  const data = await loadData(plan, { ...resolved, enough: steps * batch }, onProgress);
  const opened = openDevice(plan, resolved);
  try {
    const { device } = opened;
    const decisive = [decisiveOptions(resolved), data.hash, device.kind, device.activation];
    const fingerprint = fingerprintOf(plan.checkpoint, ...decisive);
    const folder = await RunFolder.open(resolved.out, plan.checkpoint, stateName, fingerprint);
    const saved = await readSaved(folder);
    const memory = planMemory({
      ...{ plan, device, batch, sequences: data.sequences },
      ...trainingBytes(plan.checkpoint, device.activation),
      sequencesAtOnce: saved?.sequencesAtOnce,
      round: (model, grads, angles, hostBatch) =>
        void enqueueRound({ plan, model, grads, angles }, hostBatch, 1, frozen),
    });
    const { sequences, tokens, targets, hash } = data;
    const counts = { sequences: sequences.length, tokens, targets };
    onProgress({ phase: 'planned', bytes: memory.total, ...counts });
    let weights: TrainableWeights | undefined;
    const session = await openSession(
      plan,
      opened,
      { ...resolved, signal, onLoad: (progress) => onProgress({ phase: 'loading', ...progress }) },
      (device, ops) => (weights = new TrainableWeights(plan.checkpoint, device, ops)),
    );
    reserve(session.grads, memory);
    const state = saved ?? { sequencesAtOnce: memory.sequencesAtOnce, losses: [] };
    const trainable = weights as TrainableWeights;
    checkBalance(resolved, trainable);
    if (saved !== undefined) await trainable.readState(folder.stateFile);
    const told = { ...decisiveOptions(resolved), lossOn: data.lossOn };
    const run = new Training(session, trainable, sequences, resolved, folder, state);
    const layerType = plan.pattern?.layerType ?? '0'.repeat(plan.model.attentions);
    return await run.finish({ layerType, options: told, data: { hash, ...counts } });
  } finally {
    opened.device.close();
  }
}

function checkBalance({ balanceRate }: ResolvedTrainOptions, { parameters }: TrainableWeights) {
  if (balanceRate === 0 || parameters.some(({ training }) => training === undefined)) return;
  throw new LozaError('ERR_LOZA_INVALID_ARG', 'The routers of this model have no correction bias', {
    value: balanceRate,
    hint: 'Leave balanceRate out',
  });
}

async function readSaved(folder: RunFolder): Promise<TrainState | undefined> {
  let metadata: ReadonlyMap<string, string>;
  try {
    ({ metadata } = await readSafetensorsHeader(folder.stateFile));
  } catch (error) {
    if (LozaError.isInstance(error) && error.code === 'ERR_LOZA_NOT_FOUND') return undefined;
    throw error;
  }
  folder.checkFingerprint(metadata.get('fingerprint'));
  return JSON.parse(metadata.get('state') ?? '') as TrainState;
}

function decisiveOptions(options: ResolvedTrainOptions): Record<string, unknown> {
  const { attention, sequenceLength, steps, batch, learningRate, weightDecay } = options;
  const { clip, seed, lossOn, yarnFactor, balanceRate } = options;
  const optimizer = { learningRate, weightDecay, clip, balanceRate };
  return { attention, sequenceLength, yarnFactor, steps, batch, ...optimizer, seed, lossOn };
}

/** Enqueues the loss of one round, forward and back: f32 [labelled]. */
function enqueueRound(
  { plan, model, grads, angles }: Rounds,
  batch: HostBatch,
  weight: number,
  { gradientOf, routed }: Pick<Pass, 'gradientOf' | 'routed'>,
): Tensor {
  const { ops } = grads;
  const loss = ops.float(batch.labelled.length);
  ops.arena.scope(() => {
    const attention = attentionModes(plan);
    const pass: Pass = { ...uploadBatch(grads, batch, angles), attention, gradientOf, routed };
    const labels = uploadLabels(grads, batch, weight);
    const kept: Tensor[][] = [];
    const [x] = model.forward([pass], kept) as [Tensor];
    const d = zeros(ops, ...x.shape);
    ops.cast(loss, nextTokenLoss(pass, model.head, x, labels, d));
    model.backward([pass], kept, d);
  });
  return loss;
}

interface Rounds {
  plan: LoadPlan;
  model: TrainableModel;
  grads: GradientOps;
  angles: RopeAngles;
}

function attentionModes({ pattern }: LoadPlan): (index: number) => AttentionMode {
  return (index) =>
    pattern?.layerType[index] === '1' ? { kind: 'streaming', range: pattern } : { kind: 'full' };
}

/** Nothing is trained: what is left is what takes memory. */
const frozen = { gradientOf: () => undefined };

/** One run of training, from wherever it stands to its end. */
class Training {
  private readonly order: SequenceOrder;
  private readonly balance: RouterBalance | undefined;

  constructor(
    private readonly session: Session,
    private readonly weights: TrainableWeights,
    private readonly sequences: readonly TrainingSequence[],
    private readonly options: ResolvedTrainOptions,
    private readonly folder: RunFolder,
    private readonly state: TrainState,
  ) {
    this.order = new SequenceOrder(sequences.length, options.batch, options.seed);
    const { balanceRate } = options;
    const { stream } = session.grads.ops;
    if (balanceRate > 0) this.balance = new RouterBalance(stream, balanceRate);
  }

  async finish(about: Omit<TrainingReport, 'losses'>): Promise<TrainingReport> {
    const { state, options, folder } = this;
    const { steps, saveEvery, onProgress } = options;
    const { losses } = state;
    for (let step = losses.length; step < steps; step++) {
      const rate = learningRate(step, steps, options.learningRate);
      const result = await this.step(step, rate);
      losses.push(result.loss);
      onProgress({ phase: 'training', step: step + 1, steps, ...result, learningRate: rate });
      if ((step + 1) % saveEvery === 0 && step + 1 < steps) await this.save(step + 1);
    }
    await this.save(steps);
    const report = { ...about, losses };
    await writeAtomically(folder.file('training.json'), `${JSON.stringify(report, null, 1)}\n`);
    await folder.finish();
    return report;
  }

  private async step(step: number, rate: number) {
    const { weights, session, options, balance } = this;
    const { ops } = session.grads;
    const { signal } = options;
    const batches = this.batches(step);
    const labelled = batches.reduce((sum, batch) => sum + batch.labelled.length, 0);
    weights.clearGradients();
    let loss = 0;
    for (const batch of batches) {
      throwIfAborted(signal);
      const gradientOf = (weight: Tensor) => weights.gradientOf(weight);
      const routed = balance && ((bias: Tensor, starts: Tensor) => balance.note(bias, starts));
      const read = ops.arena.scope(() =>
        ops.stream.readFloats(enqueueRound(session, batch, 1 / labelled, { gradientOf, routed })),
      );
      for (const value of await untilAborted(read, signal)) loss += value;
    }
    if (!Number.isFinite(loss)) throw diverged(step, loss);
    const read = ops.arena.scope(() => ops.stream.readFloats(this.enqueueUpdate(step, rate)));
    const [norm = NaN] = await untilAborted(read, signal);
    if (!Number.isFinite(norm)) throw diverged(step, norm);
    return { loss, norm, busiest: await balance?.update() };
  }

  private enqueueUpdate(step: number, rate: number): Tensor {
    const { weights, options, session } = this;
    const { grads } = session;
    const trained = weights.parameters.flatMap(({ training, ...parameter }) =>
      training === undefined ? [] : { ...parameter, ...training },
    );
    const clip = grads.clipFactor(
      trained.map(({ gradient }) => gradient),
      options.clip,
    );
    for (const { master, working, gradient, m, v, decays } of trained) {
      grads.adamw({
        ...{ weight: master, m, v, gradient, clip, rate, beta1, beta2, eps },
        copy: working === master ? undefined : working,
        decay: decays ? options.weightDecay : 0,
        step: step + 1,
      });
    }
    return clip;
  }

  private batches(step: number): HostBatch[] {
    const { sequencesAtOnce } = this.state;
    const chosen = this.order.batchOf(step).map((i) => this.sequences[i] as TrainingSequence);
    const rounds = Math.ceil(chosen.length / sequencesAtOnce);
    return Array.from({ length: rounds }, (_, i) =>
      layOut(chosen.slice(i * sequencesAtOnce, (i + 1) * sequencesAtOnce)),
    );
  }

  /** The state first: from it everything can be made again. */
  private async save(step: number): Promise<void> {
    const { folder, weights, state, options } = this;
    options.onProgress({ phase: 'saving', step });
    await weights.writeState(folder.stateFile, folder.stamp(state));
    const { plan } = this.session;
    await folder.copyCompanions(plan.checkpoint);
    await writeConfig(folder, plan);
    await weights.writeCheckpoint(folder.file('model.safetensors'));
  }
}

function diverged(step: number, value: number): LozaError {
  const problem = `Training has diverged: the loss or its gradient is ${value} at step ${step + 1}`;
  const hint = 'Ask for a lower learning rate';
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, { value, hint });
}
