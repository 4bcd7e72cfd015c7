import type { KernelCase, Target } from './kernel-case';
import type { KernelReport, KernelRow } from './kernels';
import { h20, roofline } from './limits';

/** Microseconds with three digits: '0.412', '12.3', '1,652'. */
export function showMicroseconds(value: number): string {
  if (value >= 1000) return value.toLocaleString('en-US', { maximumFractionDigits: 0 });
  return value.toPrecision(3);
}

export const showPercent = (share: number): string =>
  Number.isFinite(share) ? `${(share * 100).toFixed(0)} %` : '-';
const tera = (value: number): string => (value / 1e12).toPrecision(3);

function showTarget(target: Target | undefined): string {
  if (target === undefined) return '-';
  if ('us' in target) return `${showMicroseconds(target.us)} µs`;
  if ('tbs' in target) return `${target.tbs} TB/s`;
  if ('tflops' in target) return `${target.tflops} TFLOP/s`;
  return `${showPercent(target.share)} of the limit`;
}

/** A table for each group of rows, under its heading. */
export function describeKernels({ limits, rows }: KernelReport): string {
  const measured = [
    `copy ${tera(limits.copyBytes)} TB/s, read ${tera(limits.readBytes)} TB/s, write ${tera(limits.writeBytes)} TB/s`,
    `bf16 GEMM ${tera(limits.flops)} TFLOP/s`,
    `an operation that does nothing, in a graph, ${(limits.emptyLaunchNs / 1000).toFixed(2)} µs`,
  ];
  const titles = ['case', 'µs', 'TB/s', 'TFLOP/s', 'of limit', 'bound', 'peer', 'target', 'met'];
  const align = ['---', '---:', '---:', '---:', '---:', '---', '---:', '---:', '---'];
  const tables = groupByTable(rows).map(([table, group]) => {
    return `### ${table}\n\n${markdownTable([titles, align, ...group.map(cells)])}`;
  });
  return [`Measured limits: ${measured.join('; ')}.`, ...tables].join('\n\n');
}

function cells(row: KernelRow): string[] {
  const { microseconds, target, targetMet, failure, work } = row;
  const name = row.note ? `${row.name} (${row.note})` : row.name;
  const aims = [row.peer ?? '-', showTarget(target)];
  if (microseconds === undefined) {
    return [name, '-', '-', '-', '-', row.bound, ...aims, `failed: ${failure ?? ''}`];
  }
  return [
    name,
    showMicroseconds(microseconds),
    tera(row.bytesPerSecond),
    work.flops === 0 ? '-' : tera(row.flopsPerSecond),
    showPercent(row.shareOfLimit),
    row.bound,
    ...aims,
    targetMet === undefined ? '' : targetMet ? 'yes' : 'no',
  ];
}

/** What a case would take on an H20 at its published limits: nothing was measured. */
export interface Prediction {
  table: string;
  name: string;
  predictedMicroseconds: number;
  bound: 'bytes' | 'FLOPs';
}

export function predict(cases: readonly KernelCase[]): Prediction[] {
  return cases.map(({ table, name, work }) => {
    const { seconds, bound } = roofline(work(2), h20);
    return { table, name, predictedMicroseconds: seconds * 1e6, bound };
  });
}

export function describePredictions(cases: readonly KernelCase[]): string {
  const titles = ['case', 'predicted µs', 'bound'];
  const tables = groupByTable(predict(cases)).map(([table, group]) => {
    const lines = group.map(({ name, predictedMicroseconds, bound }) => {
      return [name, showMicroseconds(predictedMicroseconds), bound];
    });
    return `### ${table}\n\n${markdownTable([titles, ['---', '---:', '---'], ...lines])}`;
  });
  const what = `Predictions for an H20 by its roofline (${tera(h20.flops)} TFLOP/s in bf16, ${tera(h20.bytes)} TB/s): lower bounds, not measured.`;
  return [what, ...tables].join('\n\n');
}

function groupByTable<Row extends { table: string }>(rows: readonly Row[]): [string, Row[]][] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) groups.set(row.table, [...(groups.get(row.table) ?? []), row]);
  return [...groups];
}

export function markdownTable(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  const right = (rows[1] ?? []).map((cell) => cell.endsWith(':'));
  const pad = (cell: string, i: number) => {
    const width = widths[i] ?? 0;
    if (/^-+:?$/.test(cell) && cell.length > 2) return cell.padStart(width, '-');
    return right[i] ? cell.padStart(width) : cell.padEnd(width);
  };
  return rows.map((row) => `| ${row.map(pad).join(' | ')} |`).join('\n');
}
