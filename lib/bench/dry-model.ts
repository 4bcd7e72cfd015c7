import { DummyLoader } from '../checkpoint/dummy-weights';
import { placeholder } from '../checkpoint/weights';
import type { Sequence } from '../engine/sequence';
import { batchLimits, cacheType, makeGroups, uploadAngles, type LoadPlan } from '../load-model';
import { stepLimits, type ResolvedLoadOptions } from '../load-options';
import type { LayerGroup } from '../kv/layer-group';
import type { Model } from '../model/model';
import type { DeviceKind, NativeArena, NativeOperation, NativeStream } from '../native/binding';
import { Arena, Stream, type Purpose } from '../native/device';
import { Ops } from '../native/ops';
import { bytesPerElement, dtypes, type DType, type Tensor } from '../native/tensor';
import { planBatch, type BatchLimits } from '../runner/batch';
import { makeStep, uploadBatch, type RopeAngles } from '../runner/step';
import { realExpertShare } from './arms';
import type { BenchTest } from './grammar';
import { callWork, roofline, type Limits, type StepFacts, type Work } from './limits';
import { seat } from './sequences';

/** As native/core/memory: the arena grows by slabs, each at least twice the one before. */
const leastSlab = 2 ** 20;
const alignment = 256;

/** What a step would do. */
export interface DryStep {
  calls: { operation: NativeOperation; work: Work }[];
}

/**
 * A model on a device that is not there: tensors have shapes and sizes and nothing else, operations
 * are written down. It tells what a run would take in memory, and at the least in time.
 */
export class DryModel {
  readonly groups: readonly LayerGroup[];
  /** Bytes of weights and KV pools. */
  readonly bytes: Record<Purpose, number> = {
    ...{ weights: 0, mappedWeights: 0, kv: 0, workspace: 0, host: 0 },
  };
  private readonly arena = new DryArena();
  private readonly ops: Ops;
  private readonly model: Model;
  private readonly angles: RopeAngles;
  private readonly limits: BatchLimits;

  constructor(
    readonly plan: LoadPlan,
    options: ResolvedLoadOptions,
    kind: DeviceKind,
  ) {
    const dtype = cacheType(kind, options.dtype, plan.checkpoint);
    const activation = kind === 'cpu' ? 'f32' : dtype;
    const device = {
      allocate: (dtype: DType, shape: readonly number[], purpose: Purpose): Tensor => {
        const tensor = placeholder(dtype, shape);
        this.bytes[purpose] += tensor.bytes;
        return tensor;
      },
      release: () => {},
    };
    this.ops = new Ops(new Stream(silentStream(), activation), new Arena(this.arena));
    const { model, table } = plan;
    const loader = new DummyLoader(plan.checkpoint.config, device, this.ops, 0);
    this.model = model.build(loader, table.softmaxFactor);
    const { maxTokens = 0, prefixCache, rope } = options;
    const limits = { ...stepLimits(options, kind), prefixCache };
    this.groups = makeGroups(device, plan, limits, dtype, maxTokens);
    this.angles = uploadAngles(device, this.ops, table, rope.exactAngles);
    this.limits = batchLimits(model, options, { kind, activation });
  }

  /** Bytes of the activations of the largest step so far. */
  get arenaBytes(): number {
    return this.arena.bytes;
  }

  /** `batch` sequences with `count` new tokens from `position` on; the last of each is sampled. */
  step(batch: number, count: number, position: number): DryStep {
    const { ops, groups, model } = this;
    const facts: StepFacts = { count, position, realExperts: realExpertShare(this.plan) };
    const work = seat(groups, {
      batch,
      depth: position,
      tokens: () => [],
    }).map((sequence) => ({ sequence, count }));
    const calls: DryStep['calls'] = [];
    try {
      for (const { sequence } of work) sequence.extend(count);
      const planned = planBatch(work, groups, this.limits);
      const observe = (operation: NativeOperation, args: Parameters<typeof callWork>[1]) =>
        calls.push({ operation, work: callWork(operation, args, facts) });
      ops.arena.scope(() => {
        const tensors = uploadBatch(ops, planned);
        ops.trace(observe, () => {
          const hidden = model.forward(makeStep(ops, tensors, this.angles));
          const chosen = ops.gatherFloatRows(hidden, ops.integers(batch));
          ops.sample(
            model.logits(ops, chosen),
            ops.float(batch, 4),
            ops.integers(batch, 4),
            undefined,
            0,
          );
        });
      });
    } finally {
      for (const { sequence } of work) sequence.release();
    }
    return { calls };
  }

  /** Seconds that a step takes at least: the sum over its operations, each at its limit. */
  leastSeconds(batch: number, count: number, position: number, limits: Limits): number {
    const { calls } = this.step(batch, count, position);
    return calls.reduce((sum, { work }) => sum + roofline(work, limits).seconds, 0);
  }

  /**
   * The same for prompts of these lengths that start at `from`, read in chunks. Between the chunks
   * that are looked at, the time of a chunk grows evenly with its position: that is so once the
   * window is full.
   */
  leastPrefillSeconds(
    lengths: readonly number[],
    chunk: number,
    limits: Limits,
    from = 0,
  ): number[] {
    const costs = new Map<number, number>();
    const costOf = (index: number): number => {
      const cost = costs.get(index) ?? this.leastSeconds(1, chunk, from + index * chunk, limits);
      costs.set(index, cost);
      return cost;
    };
    return lengths.map((length) => {
      const whole = Math.floor(length / chunk);
      const rest = length % chunk;
      const tail = rest > 0 ? this.leastSeconds(1, rest, from + whole * chunk, limits) : 0;
      return tail + sumBetweenKnots([0, 1, 2, 4, whole - 1], whole, costOf);
    });
  }

  /** Seconds of a test of `loza bench` at the least. */
  leastTestSeconds({ prompt, generate, depth, batch, chunk }: BenchTest, limits: Limits): number {
    let seconds = 0;
    if (prompt > chunk) {
      seconds += batch * (this.leastPrefillSeconds([prompt], chunk, limits, depth)[0] ?? NaN);
    } else if (prompt > 0) {
      const together = Math.min(batch, Math.floor(chunk / prompt));
      seconds += (batch / together) * this.leastSeconds(together, prompt, depth, limits);
    }
    if (generate === 0) return seconds;
    const middle = depth + prompt + Math.floor(generate / 2);
    return seconds + generate * this.leastSeconds(batch, 1, middle, limits);
  }

  /** KV bytes that sequences of this length hold, and would hold were all attentions full. */
  holdings(batch: number, length: number): { resident: number; full: number } {
    const seating = {
      batch: 1,
      depth: length,
      tokens: () => [],
    };
    const [sequence] = seat(this.groups, seating) as [Sequence];
    const { resident, full } = sequence.kvBytes(length);
    sequence.release();
    return { resident: batch * resident, full: batch * full };
  }
}

/** The sum of cost(0) .. cost(count - 1), straight between the knots. */
function sumBetweenKnots(
  wanted: readonly number[],
  count: number,
  cost: (index: number) => number,
): number {
  const knots = [...new Set(wanted)].filter((k) => k >= 0 && k < count).sort((a, b) => a - b);
  let sum = knots.length > 0 ? cost(0) : 0;
  for (let i = 1; i < knots.length; i++) {
    const [from, to] = [knots[i - 1] ?? 0, knots[i] ?? 0];
    const [low, high] = [cost(from), cost(to)];
    sum += (to - from) * low + ((high - low) * (to - from + 1)) / 2;
  }
  return sum;
}

/** Counts what the real one would take from the device. */
class DryArena implements NativeArena {
  private readonly slabs: number[] = [];
  private slab = 0;
  private offset = 0;
  private readonly marks: [number, number][] = [];

  get bytes(): number {
    return this.slabs.reduce((sum, slab) => sum + slab, 0);
  }

  allocate(dtype: number, shape: readonly number[]): number {
    const elements = shape.reduce((product, extent) => product * extent, 1);
    const bytes = elements * bytesPerElement[dtypes[dtype] ?? 'f32'];
    this.bump(Math.ceil(Math.max(bytes, 1) / alignment) * alignment);
    return 0;
  }

  view(): number {
    return 0;
  }

  mark(): number {
    return this.marks.push([this.slab, this.offset]) - 1;
  }

  release(mark: number): void {
    [this.slab, this.offset] = this.marks[mark] ?? [0, 0];
    this.marks.length = mark;
  }

  private bump(bytes: number): void {
    while (this.slab < this.slabs.length && this.offset + bytes > (this.slabs[this.slab] ?? 0)) {
      this.slab += 1;
      this.offset = 0;
    }
    const last = this.slabs.at(-1) ?? leastSlab / 2;
    if (this.slab === this.slabs.length) this.slabs.push(Math.max(bytes, last * 2));
    this.offset += bytes;
  }
}

/** A stream on which everything is done at once by doing nothing. */
function silentStream(): NativeStream {
  return new Proxy({} as NativeStream, { get: () => () => {} });
}
