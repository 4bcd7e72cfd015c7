import type { NativeOperation } from '../native/binding';
import type { Device, Graph } from '../native/device';
import type { Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';
import { callShape, callWork, roofline, type Limits, type StepFacts, type Work } from './limits';
import { intervals, median } from './stopwatch';

/** One operation of a step, in the order they run. */
export interface TimelineCall {
  operation: NativeOperation;
  shape: string;
  work: Work;
  /** Between the readings of the clock around it, in the median of the replays. */
  microseconds: number;
}

/** Microseconds of the whole step, without and with the readings between. */
export interface TimelineResult {
  graph: number;
  stamped: number;
  calls: TimelineCall[];
}

/** All calls of an operation with one shape. */
export interface OperationRow {
  operation: NativeOperation;
  shape: string;
  calls: number;
  microseconds: number;
  /** Of all operations. */
  share: number;
  /** What the limits allow, and how near it is. */
  limit: number;
  bound: 'bytes' | 'FLOPs';
  shareOfLimit: number;
}

interface Graphs {
  plain: Graph;
  stamped: Graph;
}

const mostStamps = 16_384;
const warmups = 2;

/**
 * The timeline of a step on the device's own clock: the step is recorded twice, bare and with a
 * reading of the clock behind every operation.
 */
export class Timeline {
  private readonly stamps: Tensor; // i32 [readings, 2]
  private calls: Omit<TimelineCall, 'microseconds'>[] = [];

  constructor(
    private readonly device: Device,
    private readonly ops: Ops,
    private readonly facts: StepFacts,
  ) {
    this.stamps = device.allocate('i32', [mostStamps, 2], 'workspace');
  }

  record(body: () => void): Graphs {
    const { ops, stamps, facts } = this;
    const stamp = (i: number) => ops.clock(stamps.slice(0, i, i + 1).reshape(2));
    const plain = ops.stream.record(() => {
      stamp(0);
      body();
      stamp(1);
    });
    const stamped = ops.stream.record(() => {
      stamp(0);
      this.calls = [];
      ops.trace((operation, args) => {
        const work = callWork(operation, args, facts);
        this.calls.push({ operation, shape: callShape(operation, args), work });
        stamp(this.calls.length);
      }, body);
    });
    return { plain, stamped };
  }

  async replay({ plain, stamped }: Graphs, replays: number): Promise<TimelineResult> {
    const graph = median((await this.run(plain, 2, replays)).map(sum));
    const runs = await this.run(stamped, this.calls.length + 1, replays);
    const calls = this.calls.map((call, i) => {
      return { ...call, microseconds: median(runs.map((run) => run[i] ?? NaN)) };
    });
    return { graph, stamped: median(runs.map(sum)), calls };
  }

  close(): void {
    this.device.release(this.stamps);
  }

  /** Microseconds between neighbouring readings, for each replay. */
  private async run(graph: Graph, readings: number, replays: number): Promise<number[][]> {
    const { stream } = this.ops;
    const stamps = this.stamps.slice(0, 0, readings);
    const runs: Promise<Int32Array>[] = [];
    for (let i = 0; i < replays + warmups; i++) {
      stream.launch(graph);
      runs.push(stream.readIntegers(stamps));
    }
    const read = await Promise.all(runs);
    return read.slice(warmups).map((one) => intervals(one).map((ns) => ns / 1000));
  }
}

const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);

/** Calls of a shape together, the longest first; `reading` is what the clock adds to each. */
export function summarize(
  calls: readonly TimelineCall[],
  reading: number,
  limits: Limits,
): OperationRow[] {
  const groups = new Map<string, TimelineCall[]>();
  for (const call of calls) {
    const key = `${call.operation} ${call.shape}`;
    groups.set(key, [...(groups.get(key) ?? []), call]);
  }
  const net = ({ microseconds }: TimelineCall): number => Math.max(microseconds - reading, 0);
  const total = sum(calls.map(net));
  const rows = [...groups.values()].map((group) => {
    const { operation, shape } = group[0]!;
    const microseconds = sum(group.map(net));
    const limit = sum(group.map(({ work }) => roofline(work, limits).seconds * 1e6));
    const { bound } = roofline(group[0]!.work, limits);
    const share = microseconds / total;
    return {
      ...{ operation, shape, calls: group.length, microseconds, share, limit, bound },
      shareOfLimit: microseconds > 0 ? limit / microseconds : NaN,
    };
  });
  return rows.sort((a, b) => b.microseconds - a.microseconds);
}
