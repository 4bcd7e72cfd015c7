import type { Command } from 'commander';

import { calibrate } from '../calibrate/calibrate';
import type { CalibrateOptions, CalibrateProgress } from '../calibrate/options';
import type { CalibrationReport } from '../calibrate/report';
import { drawAlphaBars, drawAlphaRow } from './alpha-bars';
import type { Context } from './context';
import { formatFields } from './format';
import { addLoadFlags, realNumber, wholeNumber } from './options';
import { addTrainingFlags, choiceFlag, many, watchRun } from './training-command';
import { drawZigzag, zigzagLegend } from './zigzag';

type CalibrateFlags = Omit<CalibrateOptions, 'signal' | 'onProgress'>;
type OwnProgress = Extract<CalibrateProgress, { phase: 'training' | 'ablation' }>;

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

export function registerCalibrate(program: Command, context: Context): void {
  const command = program
    .command('calibrate')
    .description('Finds the attentions that can stream, and writes a checkpoint in which they do.')
    .argument('<dir>', 'checkpoint folder')
    .option('--data <files...>', 'data files: .jsonl or .txt')
    .requiredOption('--out <dir>', 'folder of the new checkpoint')
    .addOption(
      choiceFlag('--method <name>', 'how attentions are chosen', [
        'gradient',
        'ablation',
        'interleaved',
        'random',
      ]),
    )
    .option('--sparsity <x>', 'share of attentions that stream (default 0.5)', realNumber(0, 1))
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
    .addOption(
      choiceFlag('--loss-on <tokens>', 'tokens that count; auto: answers, if there are any', [
        'auto',
        'all',
        'answers',
      ]),
    )
    .addOption(
      choiceFlag(
        '--objective <name>',
        "distill: reach the full model's hidden states; next-token: cross-entropy",
        ['distill', 'next-token'],
      ),
    )
    .addOption(
      choiceFlag('--full-term <name>', 'detached: no gradient through full attention', [
        'exact',
        'detached',
      ]),
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
      choiceFlag('--parity <name>', 'interleaved: which attentions stream', ['odd', 'even']),
    );
  addTrainingFlags(command, { steps: 'optimiser steps of a round', learningRate: '0.02' });
  addLoadFlags(command, ['sinkBlocks', 'localBlocks', 'yarnFactor', 'device', 'dtype'])
    .addHelpText('after', examples)
    .action((dir: string, flags: CalibrateFlags) => run(dir, flags, context));
}

async function run(dir: string, flags: CalibrateFlags, context: Context): Promise<void> {
  const report = await watchRun(
    context,
    (watch) => calibrate(dir, { ...flags, ...watch }),
    describeProgress,
  );
  if (context.json) context.printJson(report);
  else context.print(describe(report, flags.out, context.width));
}

function describeProgress(progress: OwnProgress): string {
  if (progress.phase === 'ablation') {
    return `ablations: ${progress.done} of ${progress.total} sequences`;
  }
  const { round, step, steps, penalty, loss, alphas } = progress;
  const at = `round ${round}, penalty ${penalty.toPrecision(2)}: step ${step} of ${steps}`;
  return `${at}, loss ${loss.toPrecision(3)}  ${drawAlphaRow(alphas)}`;
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
