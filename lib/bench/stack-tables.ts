import { formatBytes, formatCount, formatDuration, formatPercent } from '../cli/format';
import type { MeasuredLimits } from './kernels';
import type { StackRow } from './stack';
import { markdownTable, showMicroseconds, showPercent } from './tables';

export interface StackReport {
  dir: string;
  layers: number;
  experts: number;
  layerType: string;
  loadMs: number;
  weights: number;
  peak: number;
  limits: MeasuredLimits;
  rows: StackRow[];
}

const us = (value: number): string => `${showMicroseconds(value)} µs`;

const legend = `µs: a step as the engine takes it. graph: the same operations recorded and replayed. sum: over the
operations below, timed by readings of the device's clock between them. gap: what one more kernel
behind every operation adds to the graph, and that for all operations as a share of it; where steps
are long it drowns in the noise.`;

export function describeStack(report: StackReport): string {
  const { dir, layers, experts, layerType, loadMs, weights, peak, limits, rows } = report;
  const model = `${dir}: ${layers} layers, ${experts} experts, attentions ${layerType || 'all full'}`;
  const memory = `${formatBytes(weights)} of dummy weights in ${formatDuration(loadMs)}, peak ${formatBytes(peak)}`;
  const measured = `read ${(limits.readBytes / 1e12).toPrecision(3)} TB/s, bf16 GEMM ${(limits.flops / 1e12).toPrecision(3)} TFLOP/s`;
  const empty = us(limits.emptyLaunchNs / 1000);
  const titles = [
    'step',
    'µs',
    'tokens/s',
    'graph µs',
    'sum µs',
    'operations',
    'gap at most',
    'gaps',
  ];
  const align = ['---', '---:', '---:', '---:', '---:', '---:', '---:', '---:'];
  const steps = rows.map((row) => [
    row.name,
    showMicroseconds(row.step),
    formatCount(row.tokensPerSecond),
    showMicroseconds(row.graph),
    showMicroseconds(row.sum),
    formatCount(row.operations),
    ...showGaps(row),
  ]);
  return [
    `${model}; ${memory}.`,
    `Measured limits: ${measured}; an operation that does nothing, in a graph, ${empty}.`,
    markdownTable([titles, align, ...steps]),
    legend,
    ...rows.map(describeOperations),
  ].join('\n\n');
}

/** Only of decode steps: of long ones the noise is larger. */
function showGaps({ count, gap, operations, graph }: StackRow): string[] {
  if (count > 1) return ['-', '-'];
  const bound = Math.max(gap, 0);
  return [us(bound), showPercent((bound * operations) / graph)];
}

function describeOperations({ name, table }: StackRow): string {
  const titles = ['operation', 'shape', 'calls', 'µs', 'share', 'limit µs', 'of limit', 'bound'];
  const align = ['---', '---', '---:', '---:', '---:', '---:', '---:', '---'];
  const rows = table.map((row) => [
    row.operation,
    row.shape,
    String(row.calls),
    showMicroseconds(row.microseconds),
    formatPercent(row.share),
    showMicroseconds(row.limit),
    showPercent(row.shareOfLimit),
    row.bound,
  ]);
  return `### ${name}\n\n${markdownTable([titles, align, ...rows])}`;
}
