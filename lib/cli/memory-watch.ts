import { setImmediate as nextTurn } from 'node:timers/promises';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { addon, type DeviceKind } from '../native/binding';
import { Device, listDevices } from '../native/device';

/** What looks at memory have seen, in bytes. */
export interface MemoryVerdict {
  /** At each look, after a garbage collection: resident memory less what V8 and malloc keep unused. */
  host: number[];
  /** In objects of JavaScript and in what was got of malloc: no page that is touched late counts. */
  allocated: number[];
  /** Memory in use on the GPU; null on the CPU. */
  device: number[] | null;
  hostGrowth: number;
  deviceGrowth: number | null;
  /** What a cycle of the later half adds to `allocated`; null where they are too few to say. */
  trend: number | null;
  passed: boolean;
}

/** Growth that says nothing: kernels and code are loaded when needed, a GPU gives 2 MiB at a time. */
export const allowedHostGrowth = 8 * 2 ** 20;
export const allowedDeviceGrowth = 4 * 2 ** 20;
/** Bytes a cycle, where there are enough cycles to tell them from what memory does by itself. */
export const allowedTrend = 512;
const cyclesForTrend = 500;

/** Looks at the memory of this process and of its device while the same is done again and again. */
export class MemoryWatch {
  private readonly cycles: number[] = [];
  private readonly host: number[] = [];
  private readonly allocated: number[] = [];
  private readonly device: number[] = [];

  constructor(private readonly kind: DeviceKind) {}

  get looks(): number {
    return this.host.length;
  }

  /** When so many cycles are done, and nothing is on its way. */
  async look(cycles: number): Promise<void> {
    const { resident, allocated } = await hostBytes();
    this.cycles.push(cycles);
    this.host.push(resident);
    this.allocated.push(allocated);
    if (this.kind === 'cuda') this.device.push(usedBytes(this.kind));
  }

  report(): MemoryVerdict {
    const { cycles, host, allocated, kind } = this;
    const device = kind === 'cuda' ? this.device : null;
    const hostGrowth = growth(host);
    const deviceGrowth = device === null ? null : growth(device);
    const perCycle = trend(cycles, allocated);
    const passed =
      hostGrowth <= allowedHostGrowth &&
      (deviceGrowth ?? 0) <= allowedDeviceGrowth &&
      (perCycle ?? 0) <= allowedTrend;
    return { host, allocated, device, hostGrowth, deviceGrowth, trend: perCycle, passed };
  }
}

const halfOf = (looks: readonly number[]) => Math.ceil(looks.length / 2);

/** The least of the later half less the least of the earlier one: peaks between are no growth. */
export function growth(bytes: readonly number[]): number {
  const half = halfOf(bytes);
  const [before, after] = [bytes.slice(0, half), bytes.slice(half)];
  return after.length === 0 ? 0 : Math.min(...after) - Math.min(...before);
}

/**
 * Bytes a cycle over the later half of the looks: the median of the slopes between any two of them,
 * so that a single step, or a look at a bad moment, is no trend.
 */
export function trend(cycles: readonly number[], bytes: readonly number[]): number | null {
  const first = halfOf(bytes) - 1;
  const from = cycles[first] ?? 0;
  if ((cycles.at(-1) ?? 0) - from < cyclesForTrend) return null;
  const slopes: number[] = [];
  for (let a = first; a < bytes.length; a++) {
    for (let b = a + 1; b < bytes.length; b++) {
      const done = cycles[b]! - cycles[a]!;
      if (done > 0) slopes.push((bytes[b]! - bytes[a]!) / done);
    }
  }
  return slopes.sort((a, b) => a - b)[Math.floor(slopes.length / 2)] ?? null;
}

let collectGarbage: (() => void) | undefined;

/**
 * The host's memory of this process. Two parts of what is resident say nothing about leaks, and grow
 * for thousands of cycles: V8's heap, which it lets grow from 9 to 41 MB whatever is alive, and what
 * malloc keeps of the memory that was freed, up to its threshold for each thread that ever used any.
 */
async function hostBytes(): Promise<{ resident: number; allocated: number }> {
  if (collectGarbage === undefined) {
    setFlagsFromString('--expose-gc');
    collectGarbage = runInNewContext('gc') as () => void;
  }
  let [resident, allocated] = [Infinity, Infinity];
  // Finalizers of native objects run in later turns, and free what the next collection finds; and V8
  // may be compiling just now.
  for (let i = 0; i < 5; i++) {
    collectGarbage();
    await nextTurn();
    const { total_physical_size: heap, used_heap_size: alive } = getHeapStatistics();
    const { used, unused } = addon().mallocBytes();
    resident = Math.min(resident, process.memoryUsage.rss() - (heap - alive) - unused);
    allocated = Math.min(allocated, alive + used);
  }
  return { resident, allocated };
}

function usedBytes(kind: DeviceKind): number {
  const all = listDevices().find((one) => one.kind === kind)?.memoryBytes ?? 0;
  const device = new Device(kind);
  try {
    return all - device.freeMemory();
  } finally {
    device.close();
  }
}
