import type { LayerGroup } from '../kv/layer-group';
import type { Model } from '../model/model';
import type { Device, Graph, Stream } from '../native/device';
import type { Ops, SampleResult } from '../native/ops';
import type { Tensor } from '../native/tensor';
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
 *
 * A step leaves its tokens where it found those it read: the next step of the same sequences goes on
 * from there, and can be enqueued before the host has seen them.
 */
export class DecodeGraphs {
  private readonly buckets = new Map<string, Bucket>();
  private readonly results = new Map<number, Results>();

  constructor(
    private readonly device: Device,
    private readonly ops: Ops,
    private readonly model: Model,
    private readonly groups: readonly LayerGroup[],
    private readonly angles: RopeAngles,
  ) {}

  /**
   * Enqueues one token for each of the batch's sequences, which `isPlainDecode`. With `follows` each
   * goes on with the token that the step before chose in the same row, not with the batch's.
   */
  start(batch: Batch, work: readonly StepWork[], follows: boolean): Promise<SampledToken[]> {
    const bucket = this.bucketFor(batch);
    if (!follows) bucket.results.writeTokens(batch.tokens);
    bucket.write(batch, work);
    // The first time it runs eagerly: libraries and kernels that are loaded at first use would
    // otherwise be loaded while a graph is recorded.
    if (bucket.graph === undefined) bucket.enqueue();
    else this.ops.stream.launch(bucket.graph);
    const tokens = bucket.results.read(work.length);
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
      bucket = new Bucket(device, ops, model, groups, angles, this.resultsFor(rows), widths);
      this.buckets.set(key, bucket);
    }
    return bucket;
  }

  private resultsFor(rows: number): Results {
    let results = this.results.get(rows);
    if (results === undefined) {
      results = new Results(this.device, this.ops.stream, rows);
      this.results.set(rows, results);
    }
    return results;
  }
}

/** The tokens that a step reads and those that it leaves, of all buckets with so many rows. */
class Results {
  readonly sampled: SampleResult;
  private readonly buffer: Tensor; // i32 [2, rows]: tokens, then the bits of the log-probabilities

  constructor(
    device: Device,
    private readonly stream: Stream,
    readonly rows: number,
  ) {
    this.buffer = device.allocate('i32', [2, rows], 'workspace');
    this.sampled = {
      tokens: this.buffer.view('i32', [rows], [1], 0),
      logprobs: this.buffer.view('f32', [rows], [1], rows),
    };
  }

  writeTokens(tokens: Int32Array): void {
    const padded = new Int32Array(this.rows);
    padded.set(tokens);
    this.stream.write(this.sampled.tokens, padded);
  }

  async read(count: number): Promise<SampledToken[]> {
    const outputs = await this.stream.readIntegers(this.buffer);
    const logprobs = new Float32Array(outputs.buffer, this.rows * 4, this.rows);
    return Array.from(outputs.subarray(0, count), (token, row) => ({
      token,
      logprob: logprobs[row] ?? NaN,
      alternatives: [],
    }));
  }
}

/** Where each input lies in a bucket's one input buffer, in elements of four bytes. */
interface Layout {
  positions: number;
  settings: number;
  integers: number;
  groups: GroupLayout[];
  length: number;
}

interface GroupLayout {
  slots: number;
  firstLocal: number;
  blockTable: number;
  /** Entries of a row of the block table. */
  width: number;
}

function layOut(rows: number, widths: readonly number[]): Layout {
  let length = 0;
  const take = (elements: number) => {
    const offset = length;
    length += elements;
    return offset;
  };
  const positions = take(rows);
  const settings = take(rows * 4);
  const integers = take(rows * 4);
  const groups = widths.map((width) => ({
    slots: take(rows),
    firstLocal: take(rows),
    blockTable: take(rows * width),
    width,
  }));
  return { positions, settings, integers, groups, length };
}

/**
 * The fixed buffers of one graph. All inputs but the tokens lie in one buffer: a step that follows
 * another costs one write and one read.
 */
class Bucket {
  graph: Graph | undefined;
  private readonly layout: Layout;
  private readonly inputs: Tensor; // i32 [layout.length]
  private readonly step: StepTensors;
  private readonly settings: Tensor;
  private readonly integers: Tensor;

  constructor(
    device: Device,
    private readonly ops: Ops,
    private readonly model: Model,
    groups: readonly LayerGroup[],
    private readonly angles: RopeAngles,
    readonly results: Results,
    widths: readonly number[],
  ) {
    const { rows } = results;
    this.layout = layOut(rows, widths);
    const { layout } = this;
    this.inputs = device.allocate('i32', [layout.length], 'workspace');
    const queryStarts = device.allocate('i32', [rows + 1], 'workspace');
    ops.stream.write(
      queryStarts,
      Int32Array.from({ length: rows + 1 }, (_, row) => row),
    );
    const row = (offset: number) => this.inputs.view('i32', [rows], [1], offset);
    this.step = {
      rows,
      absorbedRows: rows,
      tokens: results.sampled.tokens,
      positions: row(layout.positions),
      queryStarts,
      groups: layout.groups.map((place, g) => this.groupTensors(groups[g] as LayerGroup, place)),
    };
    this.settings = this.inputs.view('f32', [rows, 4], [4, 1], layout.settings);
    this.integers = this.inputs.view('i32', [rows, 4], [4, 1], layout.integers);
  }

  /** Overwrites all that varies but the tokens. */
  write(batch: Batch, work: readonly StepWork[]): void {
    const { layout } = this;
    const { rows } = this.results;
    const inputs = new Int32Array(layout.length);
    const settings = new Float32Array(inputs.buffer, layout.settings * 4, rows * 4);
    const samples = work.flatMap(({ sample }) => sample ?? []);
    inputs.fill(-1, layout.positions, layout.positions + rows);
    inputs.set(batch.positions, layout.positions);
    // Padding is greedy: temperature 0, top-p 1, min-p 0, penalty 1.
    for (let row = 0; row < rows; row++) settings.set([0, 1, 0, 1], row * 4);
    settings.set(packSettings(samples));
    inputs.set(packIntegers(samples), layout.integers);
    layout.groups.forEach((place, g) => {
      this.fillGroup(inputs, batch.groups[g] as GroupBatch, place, batch.rows);
    });
    this.ops.stream.write(this.inputs, inputs);
  }

  /** Enqueues the step itself: the same operations on the same addresses every time. */
  enqueue(): void {
    const { ops, model, step } = this;
    ops.arena.scope(() => {
      const logits = model.logits(ops, model.forward(makeStep(ops, step, this.angles)));
      ops.sampleInto(this.results.sampled, logits, this.settings, this.integers, undefined);
    });
  }

  private groupTensors(group: LayerGroup, place: GroupLayout): StepTensors['groups'][number] {
    const { inputs } = this;
    const { rows } = this.results;
    const { slots, firstLocal, blockTable, width } = place;
    return {
      group,
      slots: inputs.view('i32', [rows], [1], slots),
      blocks: {
        blockTable: inputs.view('i32', [rows, width], [width, 1], blockTable),
        firstLocal: inputs.view('i32', [rows], [1], firstLocal),
      },
      rounds: [],
    };
  }

  private fillGroup(
    inputs: Int32Array,
    group: GroupBatch,
    place: GroupLayout,
    count: number,
  ): void {
    const { rows } = this.results;
    const { slots, firstLocal, blockTable, width } = place;
    inputs.fill(-1, slots, slots + rows);
    inputs.set(group.slots, slots);
    inputs.set(group.firstLocal, firstLocal);
    inputs.fill(-1, blockTable, blockTable + rows * width);
    for (let row = 0; row < count; row++) {
      const from = row * group.tableWidth;
      const entries = group.blockTable.subarray(from, from + group.tableWidth);
      inputs.set(entries, blockTable + row * width);
    }
  }
}

function powerOfTwo(value: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, value)));
}
