import { formatBytes, formatCount, formatLength, formatPercent } from '../cli/format';
import type { ArmMemory } from './ab';
import type { FigurePanels, FigurePoint } from './figure3';
import { h20 } from './limits';
import { drawSheet, type Chart } from './line-chart';
import type { PanelName } from './paper';
import { markdownTable } from './tables';

export interface FigureReport {
  /** The GPU that rooflines were taken of; undefined: measured. */
  predictedFor?: 'h20';
  device: string;
  driver: string | null;
  date: string;
  version: string;
  commit: string | null;
  dir: string;
  layers: number;
  experts: number;
  zeroExperts: number;
  heads: number;
  layerType: string;
  chunk: number;
  /** YaRN's factor where contexts exceed the model's positions. */
  yarnFactor: number | null;
  panels: FigurePanels;
  memory: (ArmMemory & { arm: string })[];
  verdict: string;
}

const panelNames: readonly PanelName[] = ['kernel', 'prefill', 'decode'];

/** 1.2 s, 34.5 ms, 6.78 µs. */
function showSeconds(seconds: number): string {
  if (seconds >= 0.9995) return `${seconds.toPrecision(3)} s`;
  if (seconds >= 0.9995e-3) return `${(seconds * 1e3).toPrecision(3)} ms`;
  return `${(seconds * 1e6).toPrecision(3)} µs`;
}

function panelTitle(name: PanelName, points: readonly FigurePoint[]): string {
  const batches = [...new Set(points.map(({ batch }) => batch))].sort((a, b) => b - a);
  const batch = `batch ${batches.join(' to ')}`;
  if (name === 'kernel') return `Decode attention kernel, ${batch}`;
  return name === 'prefill' ? 'Prefill of the layers' : `Decode step of the layers, ${batch}`;
}

const describeModel = (report: FigureReport): string => {
  const { dir, layers, heads, experts, zeroExperts, layerType } = report;
  const streaming = [...layerType].filter((type) => type === '1').length;
  const routed = experts === 0 ? 'dense' : `${experts} + ${zeroExperts} experts`;
  return `${dir}, dummy weights: ${layers} layers, ${heads} heads, ${routed}; ${streaming} of ${layerType.length} attentions stream`;
};

function describeOrigin(report: FigureReport): string {
  const { predictedFor, device, driver, date, version, commit } = report;
  const from = `loza ${version}${commit === null ? '' : ` ${commit}`}, ${date}`;
  if (predictedFor === undefined) {
    return `Measured on ${device}${driver === null ? '' : `, driver ${driver}`}; ${from}.`;
  }
  const limits = `${h20.flops / 1e12} TFLOP/s in bf16, ${(h20.bytes / 1e12).toFixed(1)} TB/s`;
  return `Predicted for an H20 from rooflines (${limits}), not measured: every operation at its limit, no launches and no gaps; ${from}.`;
}

/** What the figures hold for, in sentences. */
function describeTerms({ chunk, yarnFactor, predictedFor, panels }: FigureReport): string[] {
  const batches = new Set(panels.decode.map(({ batch }) => batch));
  const fits = batches.size > 1 ? ' Longer contexts decode the batch that fits.' : '';
  const yarn = yarnFactor === null ? '' : ` Positions are stretched by YaRN, factor ${yarnFactor}.`;
  const how =
    predictedFor === undefined
      ? ' Decode steps run over random cache rows; prefill is the time to the first token.'
      : '';
  return [
    `Prompts are read in chunks of ${formatCount(chunk)} tokens.${how}${fits}${yarn}`,
    'The kernel panel times attention alone, streaming against full; the paper measured LongCat-Flash on H20.',
  ];
}

export function describeFigure(report: FigureReport): string {
  const tables = panelNames.map((name) => {
    const points = report.panels[name];
    return `### ${panelTitle(name, points)}\n\n${pointTable(points)}`;
  });
  const memory = report.memory.map(({ arm, predictedPeak, peak = NaN }) => {
    const off = formatPercent(Math.abs(peak / predictedPeak - 1));
    return `${arm} ${formatBytes(peak)} (predicted ${formatBytes(predictedPeak)}, off by ${off})`;
  });
  return [
    `${describeOrigin(report)}\n${describeModel(report)} (${report.layerType}).`,
    [...describeTerms(report), report.verdict].filter((line) => line !== '').join('\n'),
    ...tables,
    ...(memory.length > 0 ? [`Peak memory: ${memory.join('; ')}.`] : []),
  ].join('\n\n');
}

function pointTable(points: readonly FigurePoint[]): string {
  const titles = ['context', 'batch', 'full', 'LoZA', 'speed-up', 'paper'];
  const measured = points.some(({ fullOfLimit }) => fullOfLimit !== undefined);
  if (measured) titles.push('full of limit', 'LoZA of limit');
  const share = (value: number | undefined) => (value === undefined ? '-' : formatPercent(value));
  const rows = points.map((point) => [
    ...[formatLength(point.context), String(point.batch)],
    ...[showSeconds(point.full), showSeconds(point.loza), `${point.speedup.toFixed(2)} ×`],
    point.paper === undefined ? '-' : `${point.paper} ×`,
    ...(measured ? [share(point.fullOfLimit), share(point.lozaOfLimit)] : []),
  ]);
  return markdownTable([titles, titles.map(() => '---:'), ...rows]);
}

/** The three panels beside the paper's points. */
export function drawFigure(report: FigureReport): string {
  const ours =
    report.predictedFor === undefined ? `loza, measured on ${report.device}` : 'H20 by rooflines';
  const charts = panelNames.map((name): Chart => {
    const points = report.panels[name];
    return {
      title: panelTitle(name, points),
      labels: points.map(({ context }) => formatLength(context)),
      series: [
        { name: ours, style: 'solid', values: points.map(({ speedup }) => speedup) },
        { name: 'LoZA paper, figure 3 (H20)', style: 'dashed', values: points.map((p) => p.paper) },
      ],
      scale: name === 'kernel' ? 'log' : 'linear',
    };
  });
  return drawSheet({
    title: 'LongCat ZigZag Attention: how much faster than full attention',
    subtitle: describeModel(report),
    xTitle: 'context in tokens',
    yTitle: 'speed-up over full attention',
    charts,
    footer: [describeOrigin(report), ...describeTerms(report)],
  });
}
