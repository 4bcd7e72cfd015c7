import { setImmediate as nextTurn } from 'node:timers/promises';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

import { addon, type DeviceKind } from '../native/binding';
import { Device, listDevices } from '../native/device';

/** What looks at memory have seen, in bytes. */
export interface MemoryVerdict {
  /** At each look, after a garbage collection: resident memory less what V8 and malloc keep unused. */
  host: number[];
  /** What these keep. */
  unused: number[];
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
/** What V8 and malloc may keep of freed memory is bounded by more, but bounded. */
const allowedUnusedGrowth = 48 * 2 ** 20;
/** Bytes a cycle, where there are enough cycles to tell them from what memory does by itself. */
export const allowedTrend = 512;
const cyclesForTrend = 500;

/** Looks at the memory of this process and of its device while the same is done again and again. */
export class MemoryWatch {
  private readonly cycles: number[] = [];
  private readonly host: number[] = [];
  private readonly unused: number[] = [];
  private readonly allocated: number[] = [];
  private readonly device: number[] = [];

  constructor(private readonly kind: DeviceKind) {}

  get looks(): number {
    return this.host.length;
  }

  /** When so many cycles are done, and nothing is on its way. */
  async look(cycles: number): Promise<void> {
    const { resident, unused, allocated } = await hostBytes();
    this.cycles.push(cycles);
    this.host.push(resident - unused);
    this.unused.push(unused);
    this.allocated.push(allocated);
    if (this.kind === 'cuda') this.device.push(usedBytes(this.kind));
  }

  report(): MemoryVerdict {
    const { cycles, host, unused, allocated, kind } = this;
    const device = kind === 'cuda' ? this.device : null;
    const hostGrowth = growth(host);
    const deviceGrowth = device === null ? null : growth(device);
    const perCycle = trend(cycles, allocated);
    const passed =
      hostGrowth <= allowedHostGrowth &&
      growth(unused) <= allowedUnusedGrowth &&
      (deviceGrowth ?? 0) <= allowedDeviceGrowth &&
      (perCycle ?? 0) <= allowedTrend;
    const lists = { host, unused, allocated, device };
    return { ...lists, hostGrowth, deviceGrowth, trend: perCycle, passed };
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
 * Bytes that a cycle of the later half of the looks leaves for good, but for the largest step: a
 * buffer that is made larger once is no leak.
 */
export function trend(cycles: readonly number[], bytes: readonly number[]): number | null {
  const from = halfOf(cycles) - 1;
  const count = (cycles.at(-1) ?? 0) - (cycles[from] ?? 0);
  if (count < cyclesForTrend) return null;
  // At each look, what is never given back later.
  const left = bytes.slice(from).map((_, i) => Math.min(...bytes.slice(from + i)));
  const steps = left.slice(1).map((now, i) => now - left[i]!);
  const sum = steps.reduce((all, step) => all + step, 0);
  return (sum - Math.max(0, ...steps)) / count;
}

let collectGarbage: (() => void) | undefined;

/**
 * The host's memory of this process. Two parts of what is resident say nothing about leaks, and grow
 * for thousands of cycles: V8's heap, which it lets grow from 9 to 41 MB whatever is alive, and what
 * malloc keeps of the memory that was freed, up to its threshold for each thread that ever used any.
 */
async function hostBytes(): Promise<{ resident: number; unused: number; allocated: number }> {
  if (collectGarbage === undefined) {
    setFlagsFromString('--expose-gc');
    collectGarbage = runInNewContext('gc') as () => void;
  }
  let least = { resident: Infinity, unused: 0, allocated: Infinity };
  // Finalizers of native objects run in later turns, and free what the next collection finds; and V8
  // may be compiling just now.
  for (let i = 0; i < 5; i++) {
    collectGarbage();
    await nextTurn();
    const { total_physical_size: heap, used_heap_size: alive } = getHeapStatistics();
    const malloc = addon().mallocBytes();
    const resident = process.memoryUsage.rss();
    const unused = heap - alive + malloc.unused;
    const allocated = Math.min(least.allocated, alive + malloc.used);
    const isLess = resident - unused < least.resident - least.unused;
    least = isLess ? { resident, unused, allocated } : { ...least, allocated };
  }
  return least;
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
