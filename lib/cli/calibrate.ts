import { Option, type Command } from 'commander';

import { calibrate } from '../calibrate/calibrate';
import type { CalibrateOptions, CalibrateProgress } from '../calibrate/options';
import type { CalibrationReport } from '../calibrate/report';
import { drawAlphaBars, drawAlphaRow } from './alpha-bars';
import type { Context } from './context';
import { formatBytes, formatCount, formatFields } from './format';
import { LiveLine } from './live-line';
import { addLoadFlags, realNumber, wholeNumber } from './options';
import { drawZigzag, zigzagLegend } from './zigzag';

type CalibrateFlags = Omit<CalibrateOptions, 'signal' | 'onProgress'>;

const examples = `
LoZA: every attention becomes a mix of full and streaming attention, alpha x full + (1 - alpha) x
streaming. With all weights frozen the alphas are trained to stay as low as the model allows; the
attentions with the lowest become streaming. OUT gets the same weights (linked), config.json with
the pattern, alphas.json with all figures, and alphas.svg.

Data are .jsonl files with {"text": "..."} or {"messages": [...]} a line, or .txt files. Best are
chats that ask for something far back. A run that was stopped goes on when it is started again.

Methods: gradient is LoZA; ablation ranks by what each attention costs when it alone streams, and
needs no gradients; interleaved and random look at nothing, and are what LoZA is compared with.

Examples:
  loza calibrate DIR --data keys.jsonl --out DIR2
  loza calibrate DIR --data keys.jsonl --out DIR2 --steps 2000 --sequence-length 16384
  loza calibrate DIR --data keys.jsonl --out DIR2 --full-term detached   cheaper, as DuoAttention
  loza calibrate DIR --data keys.jsonl --out DIR2 --method ablation
  loza calibrate DIR --out DIR2 --method interleaved --parity even`;

const many = 2 ** 30;

export function registerCalibrate(program: Command, context: Context): void {
  const command = program
    .command('calibrate')
    .description('Finds the attentions that can stream, and writes a checkpoint in which they do.')
    .argument('<dir>', 'checkpoint folder')
    .option('--data <files...>', 'data files: .jsonl or .txt')
    .requiredOption('--out <dir>', 'folder of the new checkpoint')
    .addOption(
      new Option('--method <name>', 'how attentions are chosen (default gradient)').choices([
        'gradient',
        'ablation',
        'interleaved',
        'random',
      ]),
    )
    .option('--sparsity <x>', 'share of attentions that stream (default 0.5)', realNumber(0, 1))
    .option('--sequence-length <n>', 'tokens of a sequence (default 4096)', wholeNumber(2, 2 ** 24))
    .option('--steps <n>', 'optimiser steps of a round (default 200)', wholeNumber(1, many))
    .option('--batch <n>', 'sequences of a step (default 8)', wholeNumber(1, many))
    .option('--learning-rate <x>', 'peak of the learning rate (default 0.02)', realNumber(0, 1))
    .option(
      '--penalty <x>',
      'factor of the mean alpha in the loss (default 0.05)',
      realNumber(0, 1e6),
    )
    .option(
      '--rounds <n>',
      'most rounds, each with another penalty, until the alphas rank (default 4)',
      wholeNumber(1, 100),
    )
    .option('--seed <n>', 'decides the order of the data', wholeNumber(0, 2 ** 53 - 1))
    .addOption(
      new Option(
        '--loss-on <tokens>',
        'tokens that count (auto: answers, if there are any)',
      ).choices(['auto', 'all', 'answers']),
    )
    .addOption(
      new Option(
        '--objective <name>',
        "distill: reach the full model's hidden states (default); next-token: cross-entropy",
      ).choices(['distill', 'next-token']),
    )
    .addOption(
      new Option(
        '--full-term <name>',
        'exact (default); detached: no gradient through full attention',
      ).choices(['exact', 'detached']),
    )
    .option(
      '--ablation-sequences <n>',
      'sequences that ablations are measured with (default 32)',
      wholeNumber(1, many),
    )
    .option(
      '--tie-width <x>',
      'alphas this close to the cut are decided by ablation (default 0.02)',
      realNumber(0, 1),
    )
    .addOption(
      new Option('--parity <name>', 'interleaved: which attentions stream (default odd)').choices([
        'odd',
        'even',
      ]),
    );
  addLoadFlags(command, ['sinkBlocks', 'localBlocks', 'device', 'dtype'])
    .addHelpText('after', examples)
    .action((dir: string, flags: CalibrateFlags) => run(dir, flags, context));
}

async function run(dir: string, flags: CalibrateFlags, context: Context): Promise<void> {
  const line = new LiveLine(context);
  let report: CalibrationReport;
  try {
    report = await calibrate(dir, {
      ...flags,
      signal: context.signal,
      onProgress: (progress) => show(progress, line, context),
    });
  } finally {
    line.stop();
  }
  if (context.json) context.printJson(report);
  else context.print(describe(report, flags.out, context.width));
}

function show(progress: CalibrateProgress, line: LiveLine, context: Context): void {
  if (progress.phase === 'planned') {
    line.stop();
    context.note(describePlan(progress));
  } else if (progress.phase === 'reading') {
    line.update(describeReading(progress));
  } else if (progress.phase === 'loading') {
    line.update(
      `loading ${formatBytes(progress.loadedBytes)} of ${formatBytes(progress.totalBytes)}`,
    );
  } else if (progress.phase === 'ablation') {
    line.update(`ablations: ${progress.done} of ${progress.total} sequences`);
  } else {
    const { round, step, steps, penalty, loss, alphas } = progress;
    const at = `round ${round}, penalty ${penalty.toPrecision(2)}: step ${step} of ${steps}`;
    line.update(`${at}, loss ${loss.toPrecision(3)}  ${drawAlphaRow(alphas)}`);
  }
}

/** Of data that are tokenised. */
export const describeReading = ({ done, total }: { done: number; total: number }): string =>
  `reading document ${formatCount(done + 1)} of ${formatCount(total)}`;

/** The data and the memory of a run, on one line. */
export function describePlan(plan: {
  bytes: number;
  sequences: number;
  tokens: number;
  targets: number;
}): string {
  const { bytes, sequences, tokens, targets } = plan;
  const data = `${formatCount(sequences)} sequences, ${formatCount(tokens)} tokens`;
  return `[${data}, ${formatCount(targets)} of them learned · needs ${formatBytes(bytes)}]`;
}

function describe(report: CalibrationReport, out: string, width: number): string {
  const { layerType, alphas, margin, tied, ablationMargin, rounds } = report;
  const fields: [string, string][] = [['pattern', layerType]];
  if (margin !== undefined) fields.push(['margin at the cut', margin.toPrecision(3)]);
  if (tied !== undefined && tied.length > 0) {
    const decided =
      ablationMargin === undefined ? '' : `, apart by ${ablationMargin.toPrecision(3)}`;
    fields.push(['decided by ablation', `attentions ${tied.join(', ')}${decided}`]);
  }
  if (rounds !== undefined) {
    const shown = rounds.map(
      ({ penalty, median }) => `${penalty.toPrecision(2)} (${median.toFixed(2)})`,
    );
    fields.push(['penalty (median alpha)', shown.join(', ')]);
  }
  fields.push(['written to', out]);
  return [
    drawZigzag(layerType, width),
    zigzagLegend(report),
    ...(alphas === undefined ? [] : ['', drawAlphaBars(alphas, layerType, width)]),
    '',
    formatFields(fields),
  ].join('\n');
}
