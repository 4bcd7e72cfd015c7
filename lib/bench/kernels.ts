import { LozaError, throwIfAborted } from '../errors';
import type { DeviceKind } from '../native/binding';
import { bytesPerElement } from '../native/tensor';
import { decodeCases } from './cases/decode';
import { expertCases, smallRowCases } from './cases/matrices';
import { otherCases } from './cases/others';
import { prefillCases } from './cases/prefill';
import type { KernelCase, Sizes, Target } from './kernel-case';
import { roofline, type Limits, type Work } from './limits';
import { Stopwatch, type Effort } from './stopwatch';
import { Workbench } from './workbench';

/** One measured row. */
export interface KernelRow {
  table: string;
  name: string;
  peer: string | undefined;
  target: Target | undefined;
  note: string | undefined;
  work: Work;
  /** undefined: it failed, and `failure` says why. */
  microseconds: number | undefined;
  failure: string | undefined;
  bytesPerSecond: number;
  flopsPerSecond: number;
  /** Of the time that the measured limits allow. */
  shareOfLimit: number;
  bound: 'bytes' | 'FLOPs';
  targetMet: boolean | undefined;
}

/** What the device can do, measured with simple operations in the same run. */
export interface MeasuredLimits extends Limits {
  copyBytes: number;
  readBytes: number;
  writeBytes: number;
  /** A launch after another in a recorded graph, nothing to do. */
  emptyLaunchNs: number;
}

export interface KernelReport {
  limits: MeasuredLimits;
  rows: KernelRow[];
}

export function kernelCases(sizes: Sizes): KernelCase[] {
  const cases = [
    ...decodeCases(sizes),
    ...prefillCases(sizes),
    ...smallRowCases(sizes),
    ...expertCases(sizes),
    ...otherCases(sizes),
  ];
  if (!sizes.small) return cases;
  return cases.map(({ table, name, work, prepare }) => ({ table, name, work, prepare }));
}

export interface KernelOptions {
  kind: DeviceKind;
  sizes: Sizes;
  effort: Effort;
  signal?: AbortSignal | undefined;
  onCase?: ((done: number, total: number) => void) | undefined;
}

/** Measures the limits, then each case. A case that fails is a row that says why. */
export async function runKernels(
  cases: readonly KernelCase[],
  { kind, sizes, effort, signal, onCase }: KernelOptions,
): Promise<KernelReport> {
  let bench = new Workbench(kind);
  try {
    const limits = await measureLimits(bench, sizes, effort);
    const rows: KernelRow[] = [];
    for (const c of cases) {
      throwIfAborted(signal);
      onCase?.(rows.length, cases.length);
      // What cases grow, arenas and scratch memory, goes with the workbench of their table.
      if (c.table !== rows.at(-1)?.table) {
        bench.close();
        bench = new Workbench(kind);
      }
      rows.push(await measureCase(c, bench, effort, limits));
    }
    return { limits, rows };
  } finally {
    bench.close();
  }
}

async function measureCase(
  c: KernelCase,
  bench: Workbench,
  effort: Effort,
  limits: Limits,
): Promise<KernelRow> {
  const work = c.work(bench.activationBytes);
  try {
    const { sets, run } = c.prepare(bench);
    await bench.check(() => run(0));
    const watch = new Stopwatch(bench, effort);
    const { nanoseconds } = await watch.time(sets, run);
    return describeRow(c, work, limits, nanoseconds * 1e-9);
  } catch (error) {
    if (!LozaError.isInstance(error) || error.code === 'ERR_LOZA_CLOSED') throw error;
    return describeRow(c, work, limits, undefined, `${error.code}: ${error.message}`);
  } finally {
    bench.clear();
  }
}

function describeRow(
  { table, name, peer, target, note }: KernelCase,
  work: Work,
  limits: Limits,
  seconds: number | undefined,
  failure?: string,
): KernelRow {
  const { seconds: least, bound } = roofline(work, limits);
  const row = {
    ...{ table, name, peer, target, note, work, bound, failure },
    microseconds: seconds === undefined ? undefined : seconds * 1e6,
    bytesPerSecond: work.bytes / (seconds ?? NaN),
    flopsPerSecond: work.flops / (seconds ?? NaN),
    shareOfLimit: least / (seconds ?? NaN),
  };
  return { ...row, targetMet: target && meets(target, row) };
}

function meets(
  target: Target,
  row: Pick<KernelRow, 'microseconds' | 'bytesPerSecond' | 'flopsPerSecond' | 'shareOfLimit'>,
): boolean {
  if ('us' in target) return (row.microseconds ?? Infinity) <= target.us;
  if ('tbs' in target) return row.bytesPerSecond >= target.tbs * 1e12;
  if ('tflops' in target) return row.flopsPerSecond >= target.tflops * 1e12;
  return row.shareOfLimit >= target.share;
}

/** The limits of a device that nothing else uses yet. */
export async function measureLimitsOf(
  kind: DeviceKind,
  sizes: Sizes,
  effort: Effort,
): Promise<MeasuredLimits> {
  const bench = new Workbench(kind);
  try {
    return await measureLimits(bench, sizes, effort);
  } finally {
    bench.close();
  }
}

/**
 * Copy: a cast to the same type. Write: a fill. Read: a matrix times one row, or the copy where that
 * is faster. FLOPs: a large bf16 GEMM.
 */
async function measureLimits(
  bench: Workbench,
  sizes: Sizes,
  effort: Effort,
): Promise<MeasuredLimits> {
  const { ops, activation } = bench;
  const watch = new Stopwatch(bench, effort);
  const element = bytesPerElement[activation];
  const rate = async (amount: number, run: () => void): Promise<number> => {
    run();
    await ops.stream.synchronize();
    const { nanoseconds } = await watch.time(1, run);
    return amount / (nanoseconds * 1e-9);
  };
  const size = sizes.small ? 512 : 8192;
  const large = sizes.small ? 2 ** 20 : 2 ** 29;
  const [from, to] = [bench.activations(large), bench.tensor(activation, large)];
  const copyBytes = await rate(2 * large * element, () => ops.cast(to, from));
  const writeBytes = await rate(large * element, () => ops.fill(to, 1));
  const matrix = { tensor: from.reshape(large / size, size) };
  const row = bench.activations(1, size);
  const rowBytes = await rate(large * element, () => void ops.linear(row, matrix));
  const x = bench.activations(size, size);
  const square = bench.weight('bf16', size, size);
  const flops = await rate(2 * size ** 3, () => void ops.linear(x, square));
  const emptyLaunchNs = await watch.emptyNs();
  bench.clear();
  const readBytes = Math.max(copyBytes, rowBytes);
  return { bytes: readBytes, flops, copyBytes, readBytes, writeBytes, emptyLaunchNs };
}
