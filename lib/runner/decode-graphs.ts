import type { LayerGroup } from '../kv/layer-group';
import type { Model } from '../model/model';
import type { Device, Graph, Stream } from '../native/device';
import type { Ops, SampleResult } from '../native/ops';
import type { Tensor } from '../native/tensor';
import { tableEntries, writeTableRow, type BatchLimits } from './batch';
import type { StepOutput, StepWork } from './model-runner';
import { writeIntegers, writeSettings, type SamplingRow } from './sampling-row';
import { makeStep, type RopeAngles, type StepTensors } from './step';

/** One new token a sequence, in absorbed form, sampled, and nothing else wanted of it. */
export function isPlainDecode(work: readonly StepWork[], limits: BatchLimits): boolean {
  const plain = ({ count, sample, siblings = [], score = [] }: StepWork) =>
    count === 1 &&
    siblings.length + score.length === 0 &&
    sample?.seen === undefined &&
    sample?.alternatives === 0;
  return limits.expandedMinTokens > 1 && work.every(plain);
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
   * Enqueues one token for each sequence, which `isPlainDecode`. With `follows` each goes on with the
   * token that the step before chose in the same row, not with its own.
   */
  start(work: readonly StepWork[], follows: boolean): Promise<StepOutput[]> {
    const bucket = this.bucketFor(work);
    if (!follows) bucket.results.writeTokens(work);
    bucket.write(work);
    if (bucket.graph === undefined) {
      // The first time it runs eagerly: libraries and kernels that are loaded at first use would
      // otherwise be loaded while a graph is recorded.
      bucket.enqueue();
      bucket.graph = this.ops.stream.record(() => bucket.enqueue());
    } else {
      this.ops.stream.launch(bucket.graph);
    }
    return bucket.results.read(work.length);
  }

  private bucketFor(work: readonly StepWork[]): Bucket {
    const rows = powerOfTwo(work.length);
    const widths = this.groups.map((group) => {
      const entries = work.map(({ sequence }) => tableEntries(group, sequence));
      return powerOfTwo(Math.max(...entries));
    });
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

  writeTokens(work: readonly StepWork[]): void {
    const tokens = new Int32Array(this.rows);
    work.forEach(({ sequence: { tokens: known, computed } }, row) => {
      tokens[row] = known[computed] ?? 0;
    });
    this.stream.write(this.sampled.tokens, tokens);
  }

  async read(count: number): Promise<StepOutput[]> {
    const tokens = await this.stream.readIntegers(this.buffer);
    const logprobs = new Float32Array(tokens.buffer, this.rows * 4, this.rows);
    const outputs: StepOutput[] = [];
    for (let row = 0; row < count; row++) {
      const sampled = { token: tokens[row] ?? 0, logprob: logprobs[row] ?? NaN, alternatives: [] };
      outputs.push({ sampled });
    }
    return outputs;
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

/** Rows beyond the batch are greedy. */
const padding: SamplingRow = {
  ...{ temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 },
  ...{ seed: 0, counter: 0, alternatives: 0 },
};

interface GroupLayout {
  group: LayerGroup;
  slots: number;
  firstLocal: number;
  blockTable: number;
  /** Entries of a row of the block table. */
  width: number;
}

function layOut(rows: number, of: readonly LayerGroup[], widths: readonly number[]): Layout {
  let length = 0;
  const take = (elements: number) => {
    const offset = length;
    length += elements;
    return offset;
  };
  const positions = take(rows);
  const settings = take(rows * 4);
  const integers = take(rows * 4);
  const groups = of.map((group, g) => {
    const width = widths[g] ?? 1;
    return {
      group,
      slots: take(rows),
      firstLocal: take(rows),
      blockTable: take(rows * width),
      width,
    };
  });
  return { positions, settings, integers, groups, length };
}

/**
 * The fixed buffers of one graph. All inputs but the tokens lie in one buffer: a step that follows
 * another costs one write and one read.
 */
class Bucket {
  graph: Graph | undefined;
  private readonly layout: Layout;
  private readonly staged: Int32Array; // what is copied to the inputs
  private readonly stagedSettings: Float32Array; // [rows, 4], within it
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
    this.layout = layOut(rows, groups, widths);
    const { layout } = this;
    this.staged = new Int32Array(layout.length);
    this.stagedSettings = new Float32Array(this.staged.buffer, layout.settings * 4, rows * 4);
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
      groups: layout.groups.map((place) => this.groupTensors(place)),
    };
    this.settings = this.inputs.view('f32', [rows, 4], [4, 1], layout.settings);
    this.integers = this.inputs.view('i32', [rows, 4], [4, 1], layout.integers);
  }

  /** Overwrites all that varies but the tokens. */
  write(work: readonly StepWork[]): void {
    const { staged, stagedSettings, layout } = this;
    const { rows } = this.results;
    staged.fill(-1); // positions, slots and blocks of the padding
    for (const { firstLocal } of layout.groups) staged.fill(0, firstLocal, firstLocal + rows);
    for (let row = 0; row < rows; row++) {
      const { sequence, sample = padding } = work[row] ?? {};
      writeSettings(stagedSettings, row * 4, sample);
      writeIntegers(staged, layout.integers + row * 4, sample);
      if (sequence === undefined) continue;
      staged[layout.positions + row] = sequence.computed;
      for (const { group, slots, firstLocal, blockTable, width } of layout.groups) {
        staged[slots + row] = sequence.blocksOf(group).slot(sequence.computed);
        staged[firstLocal + row] = group.firstLocalBlock(sequence.computed);
        writeTableRow(staged, blockTable + row * width, group, sequence);
      }
    }
    this.ops.stream.write(this.inputs, staged);
  }

  /** Enqueues the step itself: the same operations on the same addresses every time. */
  enqueue(): void {
    const { ops, model, step } = this;
    ops.arena.scope(() => {
      const logits = model.logits(ops, model.forward(makeStep(ops, step, this.angles)));
      ops.sampleInto(this.results.sampled, logits, this.settings, this.integers, undefined);
    });
  }

  private groupTensors(place: GroupLayout): StepTensors['groups'][number] {
    const { inputs } = this;
    const { rows } = this.results;
    const { group, slots, firstLocal, blockTable, width } = place;
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
}

function powerOfTwo(value: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, value)));
}
