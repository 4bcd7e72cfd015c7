import { LozaError } from '../errors';
import type { Sequence } from '../engine/sequence';
import type { LayerGroup } from '../kv/layer-group';
import type { PrefixCache } from '../kv/prefix-cache';
import type { CopyBlock } from '../kv/sequence-blocks';
import type { Model } from '../model/model';
import type { Ops, SampleResult } from '../native/ops';
import type { Tensor } from '../native/tensor';
import { planBatch, type Batch, type BatchItem, type BatchLimits } from './batch';
import { isPlainDecode, type DecodeGraphs } from './decode-graphs';
import {
  packIntegers,
  packSettings,
  seenWords,
  type SampledToken,
  type SamplingRow,
} from './sampling-row';
import { uploadStep, type RopeAngles } from './step';

/** What one sequence does in a step: `count` new tokens, and what is wanted of them. */
export interface StepWork extends BatchItem {
  /** Choose the token that follows the last new one. */
  sample?: SamplingRow;
  /** Choose more, from the same logits: where sequences are about to part. */
  siblings?: readonly SamplingRow[];
  /** Read the logits of these of the new tokens, counted from the first. */
  score?: readonly number[];
}

export interface StepOutput {
  sampled?: SampledToken;
  siblings?: SampledToken[];
  /** [score.length, vocabulary] */
  logits?: Float32Array;
}

/** A step that was enqueued. */
export interface StepInFlight {
  /** Rejects when the step fails; the cache rows that it wrote are undefined then. */
  readonly outputs: Promise<StepOutput[]>;
  /** Its tokens lie where another step of the same sequences can go on from them. */
  readonly canBeFollowed: boolean;
}

/** Rows of logits that are in memory at a time when a long prompt is scored. */
const scoreRows = 64;

/** Runs steps: lays out a batch, enqueues the model, samples on the device, reads the results. */
export class ModelRunner {
  constructor(
    private readonly ops: Ops,
    private readonly model: Model,
    readonly groups: readonly LayerGroup[],
    private readonly angles: RopeAngles,
    private readonly limits: BatchLimits,
    private readonly vocabSize: number,
    /** undefined: decode steps run eagerly. */
    private readonly graphs: DecodeGraphs | undefined,
    /** undefined: nothing is kept of sequences that have ended. */
    readonly prefixCache?: PrefixCache,
  ) {}

  /**
   * Enqueues a step and advances every sequence by its new tokens. What later steps write lies behind
   * it in the stream, so blocks that no query reads any more are free at once.
   *
   * `after` is the step before, still on its way, of the same sequences in the same order: each goes
   * on with the token that is chosen there, which the host need not have seen.
   */
  start(work: readonly StepWork[], after?: StepInFlight): StepInFlight {
    for (const { sequence, count } of work) this.extend(sequence, count);
    this.prefixCache?.host?.flush(); // before the step writes to blocks whose contents go there
    const { graphs } = this;
    const canBeFollowed = graphs !== undefined && isPlainDecode(work, this.limits);
    if (after !== undefined && !(after.canBeFollowed && canBeFollowed)) {
      throw new LozaError('ERR_LOZA_INTERNAL', 'This step needs tokens that were not read yet');
    }
    const outputs = this.ops.arena.scope(() =>
      canBeFollowed
        ? graphs.start(work, after !== undefined)
        : this.startEagerly(planBatch(work, this.groups, this.limits), work),
    );
    const landings = work.map(({ sequence, count }) => sequence.advance(count));
    return { outputs: afterwards(outputs, landings), canBeFollowed };
  }

  /** Makes room for the next `count` tokens of a sequence, as `start` does for all of a step. */
  extend(sequence: Sequence, count: number): void {
    sequence.extend(count, this.copyBlock);
  }

  private readonly copyBlock: CopyBlock = (group, from, to) => {
    this.prefixCache?.host?.flush();
    group.copyBlock(this.ops, from, to);
  };

  private async startEagerly(batch: Batch, work: readonly StepWork[]): Promise<StepOutput[]> {
    const [sampled, scored] = await this.enqueue(batch, work);
    return work.map((_, i) => {
      const output: StepOutput = {};
      const [first, ...siblings] = sampled[i] ?? [];
      if (first !== undefined) output.sampled = first;
      if (siblings.length > 0) output.siblings = siblings;
      if (scored[i] !== undefined) output.logits = scored[i];
      return output;
    });
  }

  /** Resolves when the step is done, also if nothing of it is read: chunks must not pile up. */
  private enqueue(batch: Batch, work: readonly StepWork[]) {
    const hidden = this.model.forward(uploadStep(this.ops, batch, this.angles));
    const results = [this.sample(hidden, batch, work), this.score(hidden, batch, work)] as const;
    const isRead = work.some(({ sample, score = [] }) => sample !== undefined || score.length > 0);
    return Promise.all(isRead ? results : [...results, this.ops.stream.synchronize()]);
  }

  private async sample(
    hidden: Tensor,
    batch: Batch,
    work: readonly StepWork[],
  ): Promise<SampledToken[][]> {
    const chosen = work.flatMap(({ sample, siblings = [], count }, i) => {
      const row = (batch.firstRows[i] ?? 0) + count - 1;
      const samples = sample === undefined ? [] : [sample, ...siblings];
      return samples.map((one) => ({ index: i, row, sample: one }));
    });
    if (chosen.length === 0) return [];
    const settings = chosen.map(({ sample }) => sample);
    const alternatives = Math.max(...settings.map((row) => row.alternatives));
    const logits = this.logits(
      hidden,
      chosen.map(({ row }) => row),
    );
    const result = this.ops.sample(
      logits,
      this.uploadSettings(settings),
      this.ops.upload(packIntegers(settings), settings.length, 4),
      this.uploadSeen(settings),
      alternatives,
    );
    const tokens = await this.readSamples(result, alternatives);
    const byItem: SampledToken[][] = work.map(() => []);
    chosen.forEach(({ index, sample }, i) => {
      const token = tokens[i] as SampledToken;
      const alternatives = token.alternatives.slice(0, sample.alternatives);
      byItem[index]?.push({ ...token, alternatives });
    });
    return byItem;
  }

  private async readSamples(result: SampleResult, alternatives: number): Promise<SampledToken[]> {
    const { stream } = this.ops;
    const none = { tokens: new Int32Array(), logprobs: new Float32Array() };
    const [tokens, logprobs, topTokens, topLogprobs] = await Promise.all([
      stream.readIntegers(result.tokens),
      stream.readFloats(result.logprobs),
      result.topTokens ? stream.readIntegers(result.topTokens) : none.tokens,
      result.topLogprobs ? stream.readFloats(result.topLogprobs) : none.logprobs,
    ]);
    return Array.from(tokens, (token, row) => ({
      token,
      logprob: logprobs[row] ?? NaN,
      alternatives: Array.from({ length: alternatives }, (_, i) => ({
        token: topTokens[row * alternatives + i] ?? 0,
        logprob: topLogprobs[row * alternatives + i] ?? NaN,
      })),
    }));
  }

  private async score(
    hidden: Tensor,
    batch: Batch,
    work: readonly StepWork[],
  ): Promise<(Float32Array | undefined)[]> {
    const reads = work.map(({ score }, i) => {
      if (score === undefined || score.length === 0) return [];
      const rows = score.map((offset) => (batch.firstRows[i] ?? 0) + offset);
      return this.readLogits(hidden, rows);
    });
    const parts = await Promise.all(reads.map((read) => Promise.all(read)));
    return parts.map((part) => (part.length === 0 ? undefined : concatenate(part)));
  }

  private readLogits(hidden: Tensor, rows: readonly number[]): Promise<Float32Array>[] {
    const reads: Promise<Float32Array>[] = [];
    for (let from = 0; from < rows.length; from += scoreRows) {
      const part = rows.slice(from, from + scoreRows);
      const read = () => this.ops.stream.readFloats(this.logits(hidden, part));
      reads.push(this.ops.arena.scope(read));
    }
    return reads;
  }

  private logits(hidden: Tensor, rows: readonly number[]): Tensor {
    const ids = this.ops.upload(Int32Array.from(rows));
    return this.model.logits(this.ops, this.ops.gatherFloatRows(hidden, ids));
  }

  private uploadSettings(rows: readonly SamplingRow[]): Tensor {
    const settings = this.ops.float(rows.length, 4);
    this.ops.stream.write(settings, packSettings(rows));
    return settings;
  }

  private uploadSeen(rows: readonly SamplingRow[]): Tensor | undefined {
    if (rows.every((row) => row.seen === undefined)) return undefined;
    const words = seenWords(this.vocabSize);
    const masks = new Int32Array(rows.length * words);
    rows.forEach((row, i) => row.seen && masks.set(row.seen, i * words));
    return this.ops.upload(masks, rows.length, words);
  }
}

/** What the sequences learn of a step that has succeeded, before anyone else does. */
async function afterwards<T>(outputs: Promise<T>, landings: readonly (() => void)[]): Promise<T> {
  const results = await outputs;
  for (const land of landings) land();
  return results;
}

function concatenate(parts: readonly Float32Array[]): Float32Array {
  if (parts.length === 1 && parts[0] !== undefined) return parts[0];
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}
