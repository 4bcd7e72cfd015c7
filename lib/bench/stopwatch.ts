import type { Ops } from '../native/ops';
import type { Tensor } from '../native/tensor';
import type { Workbench } from './workbench';

/** How long to measure. */
export interface Effort {
  /** A recorded graph repeats its work until it takes this long. */
  graphNs: number;
  /** Replays of it take this long in all, but their number is within the bounds. */
  totalNs: number;
  replays: readonly [least: number, most: number];
}

export const usualEffort: Effort = { graphNs: 400_000, totalNs: 60_000_000, replays: [5, 40] };
export const leastEffort: Effort = { graphNs: 0, totalNs: 0, replays: [1, 1] };

export interface Timing {
  /** Of one call, in the median of the replays. */
  nanoseconds: number;
  replays: number;
  /** Calls in a replay. */
  calls: number;
}

const mostCalls = 512;

/**
 * Times work on the device's own clock. The work is recorded as often as fills a graph, between two
 * readings of the clock; what the readings cost is taken off.
 */
export class Stopwatch {
  private readonly stamps: Tensor; // i32 [2, 2]
  private readonly spare: Tensor; // i32 [2]
  private readonly ops: Ops;
  private overhead: number | undefined;

  constructor(
    bench: Pick<Workbench, 'ops' | 'tensor'>,
    private readonly effort: Effort,
  ) {
    this.ops = bench.ops;
    this.stamps = bench.tensor('i32', 2, 2);
    this.spare = bench.tensor('i32', 2);
  }

  /**
   * Times `body`, which gets 0 .. cycle - 1 in turn: the working set to use. It must have run before.
   * What it allocates in the arena is its own within a cycle.
   */
  async time(cycle: number, body: (set: number) => void): Promise<Timing> {
    const { graphNs, totalNs, replays: bounds } = this.effort;
    this.overhead ??= median(await this.replay(() => {}, 1, 20));
    let calls = cycle;
    let graph = this.record(calls, cycle, body);
    let [duration = 0] = await this.run(graph, 1);
    [duration = 0] = await this.run(graph, 1); // the first replay brings the graph to the device
    if (duration < graphNs) {
      const cycles = Math.min(graphNs / Math.max(duration, 1), Math.max(1, mostCalls / cycle));
      calls = cycle * Math.ceil(cycles);
      graph = this.record(calls, cycle, body);
      [duration = 0] = await this.run(graph, 1);
    }
    const [least, most] = bounds;
    const replays = Math.round(Math.min(Math.max(totalNs / Math.max(duration, 1), least), most));
    const whole = median(await this.run(graph, replays));
    return { nanoseconds: Math.max(whole - this.overhead, 0) / calls, replays, calls };
  }

  /** Nanoseconds from one reading of the clock to the next: an operation that does nothing. */
  async emptyNs(): Promise<number> {
    const between = 256;
    const body = () => {
      for (let i = 0; i < between; i++) this.ops.clock(this.spare);
    };
    return median(await this.replay(body, 1, 9)) / (between + 1);
  }

  private replay(body: () => void, cycle: number, replays: number): Promise<number[]> {
    return this.run(this.record(cycle, cycle, body), replays);
  }

  private record(calls: number, cycle: number, body: (set: number) => void) {
    const { ops, stamps } = this;
    return ops.stream.record(() => {
      ops.clock(stamps.slice(0, 0, 1).reshape(2));
      for (let call = 0; call < calls; call += cycle) {
        ops.arena.scope(() => {
          for (let set = 0; set < cycle; set++) body(set);
        });
      }
      ops.clock(stamps.slice(0, 1, 2).reshape(2));
    });
  }

  private async run(graph: ReturnType<Stopwatch['record']>, replays: number): Promise<number[]> {
    const reads: Promise<Int32Array>[] = [];
    for (let i = 0; i < replays; i++) {
      this.ops.stream.launch(graph);
      reads.push(this.ops.stream.readIntegers(this.stamps));
    }
    return (await Promise.all(reads)).map((stamps) => intervals(stamps)[0] ?? NaN);
  }
}

/** Nanoseconds between neighbouring readings of the clock, [readings, 2]. */
export function intervals(stamps: Int32Array): number[] {
  const times = new BigUint64Array(stamps.slice().buffer);
  return Array.from(times.subarray(1), (time, i) => Number(time - (times[i] ?? 0n)));
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}
