import type { LayerGroup } from '../kv/layer-group';
import type { Model } from '../model/model';
import type { Device, Graph } from '../native/device';
import type { Ops, SampleResult } from '../native/ops';
import type { Tensor, DType } from '../native/tensor';
import type { Batch, GroupBatch } from './batch';
import type { StepWork } from './model-runner';
import { packIntegers, packSettings, type SampledToken } from './sampling-row';
import { makeStep, type RopeAngles, type StepTensors } from './step';

/** One new token a sequence, in absorbed form, sampled, and nothing else wanted of it. */
export function isPlainDecode(batch: Batch, work: readonly StepWork[]): boolean {
  const plain = ({ count, sample, score = [] }: StepWork) =>
    count === 1 && score.length === 0 && sample?.seen === undefined && sample?.alternatives === 0;
  return batch.absorbedRows === batch.rows && work.every(plain);
}

/**
 * Decode steps that are recorded once and replayed with one call: one graph for each bucket of batch
 * size and table widths, powers of two. What varies lies in buffers that are overwritten before a
 * replay; rows beyond the batch are padding (position and slot -1).
 */
export class DecodeGraphs {
  private readonly buckets = new Map<string, Bucket>();

  constructor(
    private readonly device: Device,
    private readonly ops: Ops,
    private readonly model: Model,
    private readonly groups: readonly LayerGroup[],
    private readonly angles: RopeAngles,
  ) {}

  /** One token for each of the batch's sequences, which `isPlainDecode`. */
  async run(batch: Batch, work: readonly StepWork[]): Promise<SampledToken[]> {
    const bucket = this.bucketFor(batch);
    bucket.write(batch, work);
    // The first time it runs eagerly: libraries and kernels that are loaded at first use would
    // otherwise be loaded while a graph is recorded.
    if (bucket.graph === undefined) bucket.enqueue();
    else this.ops.stream.launch(bucket.graph);
    const tokens = bucket.read(work.length);
    bucket.graph ??= this.ops.stream.record(() => bucket.enqueue());
    return tokens;
  }

  private bucketFor(batch: Batch): Bucket {
    const rows = powerOfTwo(batch.rows);
    const widths = batch.groups.map(({ tableWidth }) => powerOfTwo(tableWidth));
    const key = [rows, ...widths].join();
    let bucket = this.buckets.get(key);
    if (bucket === undefined) {
      const { device, ops, model, groups, angles } = this;
      bucket = new Bucket(device, ops, model, groups, angles, rows, widths);
      this.buckets.set(key, bucket);
    }
    return bucket;
  }
}

/** The fixed buffers of one graph. */
class Bucket {
  graph: Graph | undefined;
  private readonly step: StepTensors;
  private readonly settings: Tensor;
  private readonly integers: Tensor;
  private readonly result: SampleResult;

  constructor(
    device: Device,
    private readonly ops: Ops,
    private readonly model: Model,
    groups: readonly LayerGroup[],
    private readonly angles: RopeAngles,
    private readonly rows: number,
    private readonly widths: readonly number[],
  ) {
    const allocate = (dtype: DType, ...shape: number[]) =>
      device.allocate(dtype, shape, 'workspace');
    this.step = {
      rows,
      absorbedRows: rows,
      tokens: allocate('i32', rows),
      positions: allocate('i32', rows),
      queryStarts: allocate('i32', rows + 1),
      groups: groups.map((group, g) => ({
        group,
        slots: allocate('i32', rows),
        blocks: {
          blockTable: allocate('i32', rows, widths[g] ?? 1),
          firstLocal: allocate('i32', rows),
        },
        rounds: [],
      })),
    };
    this.settings = allocate('f32', rows, 4);
    this.integers = allocate('i32', rows, 4);
    this.result = { tokens: allocate('i32', rows), logprobs: allocate('f32', rows) };
    ops.stream.write(
      this.step.queryStarts,
      Int32Array.from({ length: rows + 1 }, (_, row) => row),
    );
  }

  /** Overwrites all that varies. */
  write(batch: Batch, work: readonly StepWork[]): void {
    const { stream } = this.ops;
    const { rows, step } = this;
    stream.write(step.tokens, padded(batch.tokens, rows, 0));
    stream.write(step.positions, padded(batch.positions, rows, -1));
    batch.groups.forEach((group, g) => this.writeGroup(group, g, batch.rows));
    const samples = work.flatMap(({ sample }) => sample ?? []);
    const settings = new Float32Array(rows * 4);
    // Padding is greedy: temperature 0, top-p 1, min-p 0, penalty 1.
    for (let row = samples.length; row < rows; row++) settings.set([0, 1, 0, 1], row * 4);
    settings.set(packSettings(samples));
    stream.write(this.settings, settings);
    stream.write(this.integers, padded(packIntegers(samples), rows * 4, 0));
  }

  /** Enqueues the step itself: the same operations on the same addresses every time. */
  enqueue(): void {
    const { ops, model, step } = this;
    ops.arena.scope(() => {
      const logits = model.logits(ops, model.forward(makeStep(ops, step, this.angles)));
      ops.sampleInto(this.result, logits, this.settings, this.integers, undefined);
    });
  }

  async read(count: number): Promise<SampledToken[]> {
    const { stream } = this.ops;
    const [tokens, logprobs] = await Promise.all([
      stream.readIntegers(this.result.tokens),
      stream.readFloats(this.result.logprobs),
    ]);
    return Array.from(tokens.subarray(0, count), (token, row) => ({
      token,
      logprob: logprobs[row] ?? NaN,
      alternatives: [],
    }));
  }

  private writeGroup(group: GroupBatch, g: number, count: number): void {
    const { stream } = this.ops;
    const tensors = this.step.groups[g];
    if (tensors === undefined) return;
    const width = this.widths[g] ?? 1;
    const table = new Int32Array(this.rows * width).fill(-1);
    for (let row = 0; row < count; row++) {
      const from = row * group.tableWidth;
      table.set(group.blockTable.subarray(from, from + group.tableWidth), row * width);
    }
    stream.write(tensors.slots, padded(group.slots, this.rows, -1));
    stream.write(tensors.blocks.blockTable, table);
    stream.write(tensors.blocks.firstLocal, padded(group.firstLocal, this.rows, 0));
  }
}

function powerOfTwo(value: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, value)));
}

function padded(values: Int32Array, length: number, filler: number): Int32Array {
  const result = new Int32Array(length).fill(filler);
  result.set(values);
  return result;
}
