import type { LoadPlan } from '../load-model';
import { loadData } from '../train/data/load-data';
import { SequenceOrder } from '../train/data/sequences';
import { fingerprintOf } from '../train/fingerprint';
import { planMemory, reserve } from '../train/memory-plan';
import { RunFolder } from '../train/run-folder';
import { learningRate } from '../train/schedule';
import { frozenBytes, openDevice, openSession, planTraining, type Session } from '../train/session';
import { AlphaOptimizer, type AlphaState } from './alpha-optimizer';
import { interleaved, randomPattern } from './fixed-patterns';
import { MixRunner, type AblationState } from './mix-runner';
import { MixedModel } from './mixed-model';
import {
  checkNames,
  resolveCalibrateOptions,
  type CalibrateOptions,
  type ResolvedCalibrateOptions,
} from './options';
import { medianOf, nextPenalty, type PenaltyTrial } from './penalty';
import { nearTies, rank, streamingCount } from './ranking';
import { writeCheckpoint, type CalibrationReport } from './report';

/** A run that can be taken up: everything that its result depends on. */
interface CalibrationState {
  sequencesAtOnce: number;
  trials: PenaltyTrial[];
  penalty: number;
  optimizer: AlphaState | undefined;
  losses: number[];
  ablation: AblationState | undefined;
}

const stateName = 'calibration-state.json';
/** Milliseconds between two states on the disk. */
const saveEvery = 250;

/**
 * Turns a checkpoint with full attention into one whose least needed attentions stream: LoZA. `out`
 * gets the same weights, config.json with the pattern, and alphas.json with how it came about. A run
 * that was stopped goes on where it was when it is started again, to the same bits.
 *
 * @throws LozaError ERR_LOZA_INVALID_ARG, ERR_LOZA_DATA, ERR_LOZA_OUT_OF_MEMORY with the memory that
 * is needed, ERR_LOZA_ABORTED, and those of loading a model.
 */
export async function calibrate(
  dir: string,
  options: CalibrateOptions,
): Promise<CalibrationReport> {
  checkNames(options);
  const plan = await planTraining(dir, 'full', options.signal, options.yarnFactor);
  const resolved = resolveCalibrateOptions(options, plan.maxPosition);
  const { method } = resolved;
  const isMeasured = method === 'gradient' || method === 'ablation';
  return isMeasured ? measure(plan, resolved) : choose(plan, resolved);
}

/** A pattern that no measurement decides. */
async function choose(
  plan: LoadPlan,
  options: ResolvedCalibrateOptions,
): Promise<CalibrationReport> {
  const { method, sparsity, parity, seed, out, yarnFactor } = options;
  const { checkpoint } = plan;
  const { attentions } = plan.model;
  const count = streamingCount(attentions, sparsity);
  const layerType =
    method === 'random'
      ? randomPattern(attentions, count, seed)
      : interleaved(attentions, count, parity);
  const fingerprint = fingerprintOf(checkpoint, method, sparsity, parity, seed, yarnFactor);
  const folder = await RunFolder.open(out, checkpoint, stateName, fingerprint);
  const decisive = { ...(method === 'random' ? { seed } : { parity }), yarnFactor };
  await folder.save({});
  const report = { ...reportHead(options, layerType), options: decisive };
  await writeCheckpoint(folder, plan, report);
  return report;
}

async function measure(
  plan: LoadPlan,
  options: ResolvedCalibrateOptions,
): Promise<CalibrationReport> {
  const { method, steps, batch, ablationSequences, signal } = options;
  const enough = method === 'gradient' ? steps * batch : ablationSequences;
  const wanted = { ...options, enough: Math.max(enough, ablationSequences) };
  const data = await loadData(plan, wanted, options.onProgress);
  const opened = openDevice(plan, options);
  const onLoad = (progress: { loadedBytes: number; totalBytes: number }) =>
    options.onProgress({ phase: 'loading', ...progress });
  try {
    const { kind, activation } = opened.device;
    const decisive = [decisiveOptions(options), data.hash, data.lossOn, kind, activation];
    const fingerprint = fingerprintOf(plan.checkpoint, ...decisive);
    const folder = await RunFolder.open(options.out, plan.checkpoint, stateName, fingerprint);
    const saved = await folder.resume<CalibrationState>();
    const memory = planCalibration(plan, opened.device, data.sequences, options, saved);
    const { sequences, tokens, targets } = data;
    const counts = { sequences: sequences.length, tokens, targets };
    options.onProgress({ phase: 'planned', bytes: memory.total, ...counts });
    const session = await openSession(plan, opened, { ...options, signal, onLoad });
    reserve(session.grads, memory);
    const state: CalibrationState = saved ?? {
      sequencesAtOnce: memory.sequencesAtOnce,
      trials: [],
      penalty: options.penalty,
      optimizer: undefined,
      losses: [],
      ablation: undefined,
    };
    const run = new Calibration(session, data.sequences, options, folder, state);
    const found = method === 'gradient' ? await run.train() : await run.ablate();
    const summary = { hash: data.hash, ...counts };
    const told = { ...decisiveOptions(options), lossOn: data.lossOn };
    const report = { ...found, options: told, data: summary };
    await writeCheckpoint(folder, plan, report);
    return report;
  } finally {
    opened.device.close();
  }
}

/** Both kinds of round must fit. */
function planCalibration(
  plan: LoadPlan,
  device: Session['device'],
  sequences: Calibration['sequences'],
  options: ResolvedCalibrateOptions,
  saved: CalibrationState | undefined,
) {
  const { method, batch, ablationSequences } = options;
  const count = plan.model.attentions;
  const weights = frozenBytes(plan.checkpoint, device.activation);
  return planMemory({
    ...{ plan, device, weights, optimizer: 0, sequences },
    batch: method === 'gradient' ? batch : Math.min(ablationSequences, sequences.length),
    sequencesAtOnce: saved?.sequencesAtOnce,
    round: (model, grads, angles, hostBatch) => {
      const { arena } = grads.ops;
      const mixed = new MixedModel(model, angles, mixOptions(options));
      const alphas = new Float32Array(count);
      if (method === 'gradient') {
        arena.scope(() => mixed.gradient(grads, hostBatch, 1, alphas));
      }
      const all = Array.from(alphas.keys());
      arena.scope(() => [...mixed.ablations(grads, hostBatch, 1, all, perLayerOf(plan))]);
    },
  });
}

const perLayerOf = ({ model }: LoadPlan): number => model.attentions / model.layers;

const mixOptions = (options: ResolvedCalibrateOptions) => {
  const { sinkBlocks, localBlocks, objective, fullTerm } = options;
  return { range: { sinkBlocks, localBlocks }, objective, fullTerm };
};

const reportHead = (options: ResolvedCalibrateOptions, layerType: string) => {
  const { method, sparsity, sinkBlocks, localBlocks } = options;
  return { method, layerType, sparsity, sinkBlocks, localBlocks };
};

/** What a result depends on, besides the data and the weights. */
function decisiveOptions(options: ResolvedCalibrateOptions): Record<string, unknown> {
  const { method, sparsity, sinkBlocks, localBlocks, sequenceLength, seed, tieWidth } = options;
  const { objective, fullTerm, steps, batch, learningRate, penalty, rounds } = options;
  const { ablationSequences, yarnFactor } = options;
  const window = { sinkBlocks, localBlocks, sequenceLength, yarnFactor };
  const common = { method, sparsity, ...window, seed };
  if (method === 'ablation') return { ...common, ablationSequences };
  const training = { objective, fullTerm, steps, batch, learningRate, penalty, rounds };
  return { ...common, ...training, tieWidth, ablationSequences };
}

/** One calibration that measures, from wherever it stands to its end. */
class Calibration {
  private readonly runner: MixRunner;
  private readonly count: number;
  private savedAt = Date.now();

  constructor(
    session: Session,
    readonly sequences: ConstructorParameters<typeof MixRunner>[1],
    private readonly options: ResolvedCalibrateOptions,
    private readonly folder: RunFolder,
    private readonly state: CalibrationState,
  ) {
    this.count = session.plan.model.attentions;
    this.runner = new MixRunner(session, sequences, mixOptions(options), state.sequencesAtOnce);
  }

  /** Trains the alphas, with other penalties until they rank. */
  async train(): Promise<Omit<CalibrationReport, 'options'>> {
    const { state, options } = this;
    let alphas = await this.round();
    for (;;) {
      const penalty = nextPenalty(state.trials);
      if (penalty === undefined || state.trials.length >= options.rounds) break;
      Object.assign(state, { penalty, optimizer: undefined, losses: [] });
      alphas = await this.round();
    }
    const scores = Array.from(alphas);
    const streaming = streamingCount(this.count, options.sparsity);
    const tied = nearTies(scores, streaming, options.tieWidth);
    const measured = tied.length > 0 ? await this.ablations(tied) : undefined;
    const ablations = new Map(tied.map((i, n) => [i, measured?.increases[n] ?? 0]));
    const { layerType, ...ranking } = rank(scores, streaming, ablations);
    return {
      ...reportHead(options, layerType),
      alphas: scores,
      ...ranking,
      ablations: measured && scores.map((_, i) => ablations.get(i) ?? null),
      fullLoss: measured?.full,
      rounds: state.trials,
      losses: state.losses,
    };
  }

  /** Ranks by what each attention alone costs. */
  async ablate(): Promise<Omit<CalibrationReport, 'options'>> {
    const all = Array.from({ length: this.count }, (_, i) => i);
    const { full, increases } = await this.ablations(all);
    const streaming = streamingCount(this.count, this.options.sparsity);
    const { order, margin, layerType } = rank(increases, streaming);
    const head = reportHead(this.options, layerType);
    return { ...head, order, margin, ablations: increases, fullLoss: full };
  }

  /** One round of training, or what is left of it. */
  private async round(): Promise<Float32Array> {
    const { state, options, count } = this;
    const { steps, batch, seed, signal } = options;
    const optimizer =
      state.optimizer === undefined
        ? AlphaOptimizer.start(count)
        : AlphaOptimizer.resume(state.optimizer);
    const order = new SequenceOrder(this.sequences.length, batch, seed);
    for (let step = state.losses.length; step < steps; step++) {
      const { loss, gradient } = await this.runner.gradient(
        order.batchOf(step),
        optimizer.alphas,
        signal,
      );
      const slopes = gradient.map((slope) => slope + state.penalty / count);
      optimizer.step(slopes, learningRate(step, steps, options.learningRate));
      state.losses.push(loss);
      state.optimizer = optimizer.save();
      const { alphas } = optimizer;
      options.onProgress({
        ...{ phase: 'training', round: state.trials.length + 1, step: step + 1, steps },
        ...{ penalty: state.penalty, loss, alphas: Array.from(alphas) },
      });
      await this.save(step + 1 === steps);
    }
    const { alphas } = optimizer;
    // A round that was saved as finished is not counted twice.
    const { penalty, trials } = state;
    if (trials.at(-1)?.penalty !== penalty) trials.push({ penalty, median: medianOf(alphas) });
    await this.save(true);
    return alphas;
  }

  private async ablations(attentions: readonly number[]) {
    const { state, options } = this;
    const of = Math.min(options.ablationSequences, this.sequences.length);
    state.ablation ??= { sequences: 0, labelled: 0, sums: [] };
    const { ablation } = state;
    while (ablation.sequences < of) {
      options.onProgress({ phase: 'ablation', done: ablation.sequences, total: of });
      await this.runner.ablate(ablation, of, attentions, options.signal);
      await this.save(false);
    }
    options.onProgress({ phase: 'ablation', done: of, total: of });
    await this.save(true);
    const [full = 0, ...others] = ablation.sums.map((sum) => sum / ablation.labelled);
    return { full, increases: others.map((loss) => loss - full) };
  }

  private async save(now: boolean): Promise<void> {
    if (!now && Date.now() - this.savedAt < saveEvery) return;
    await this.folder.save(this.state);
    this.savedAt = Date.now();
  }
}
