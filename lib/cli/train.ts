import { Option, type Command } from 'commander';

import type { TrainOptions, TrainProgress } from '../train/options';
import { train, type TrainingReport } from '../train/train';
import { describePlan, describeReading } from './calibrate';
import type { Context } from './context';
import { formatBytes, formatFields } from './format';
import { LiveLine } from './live-line';
import { addLoadFlags, realNumber, wholeNumber } from './options';

type TrainFlags = Omit<TrainOptions, 'signal' | 'onProgress'>;

const examples = `
All weights are trained by AdamW over fp32 masters, with the attentions that stream as the
checkpoint says. OUT gets a checkpoint with the same names and dtypes, every --save-every steps and
at the end, and training.json with the losses. A run that was stopped goes on from its last
checkpoint when it is started again, to the same bits.

Data are .jsonl files with {"text": "..."} or {"messages": [...]} a line, or .txt files.

Examples:
  loza train DIR --data keys.jsonl book.txt --out DIR2
  loza train DIR --data keys.jsonl --out DIR2 --loss-on answers --steps 1000 --learning-rate 3e-4`;

const many = 2 ** 30;

export function registerTrain(program: Command, context: Context): void {
  const command = program
    .command('train')
    .description('Trains a sparse or a full checkpoint on.')
    .argument('<dir>', 'checkpoint folder')
    .requiredOption('--data <files...>', 'data files: .jsonl or .txt')
    .requiredOption('--out <dir>', 'folder of the new checkpoint')
    .addOption(
      new Option('--attention <name>', 'auto: as the checkpoint says; full: none streams').choices([
        'auto',
        'full',
      ]),
    )
    .option('--sequence-length <n>', 'tokens of a sequence (default 4096)', wholeNumber(2, 2 ** 24))
    .option('--steps <n>', 'optimiser steps (default 200)', wholeNumber(1, many))
    .option('--batch <n>', 'sequences of a step (default 8)', wholeNumber(1, many))
    .option('--learning-rate <x>', 'peak of the learning rate (default 1e-4)', realNumber(0, 1))
    .option('--weight-decay <x>', 'decay of the matrices (default 0.1)', realNumber(0, 1e3))
    .option(
      '--clip <x>',
      'norm that the gradient is brought down to (default 1)',
      realNumber(0, 1e9),
    )
    .option('--seed <n>', 'decides the order of the data', wholeNumber(0, 2 ** 53 - 1))
    .addOption(
      new Option('--loss-on <tokens>', 'tokens that count (default all)').choices([
        'all',
        'answers',
        'auto',
      ]),
    )
    .option(
      '--save-every <n>',
      'steps between two checkpoints (default 100)',
      wholeNumber(1, many),
    );
  addLoadFlags(command, ['device', 'dtype'])
    .addHelpText('after', examples)
    .action((dir: string, flags: TrainFlags) => run(dir, flags, context));
}

async function run(dir: string, flags: TrainFlags, context: Context): Promise<void> {
  const line = new LiveLine(context);
  let report: TrainingReport;
  try {
    report = await train(dir, {
      ...flags,
      signal: context.signal,
      onProgress: (progress) => show(progress, line, context),
    });
  } finally {
    line.stop();
  }
  if (context.json) return context.printJson(report);
  const { losses } = report;
  const fields: [string, string][] = [
    ['first loss', losses[0]?.toFixed(4) ?? ''],
    ['last loss', losses.at(-1)?.toFixed(4) ?? ''],
    ['written to', flags.out],
  ];
  context.print(formatFields(fields));
}

function show(progress: TrainProgress, line: LiveLine, context: Context): void {
  if (progress.phase === 'planned') {
    line.stop();
    context.note(describePlan(progress));
  } else if (progress.phase === 'reading') {
    line.update(describeReading(progress));
  } else if (progress.phase === 'loading') {
    line.update(
      `loading ${formatBytes(progress.loadedBytes)} of ${formatBytes(progress.totalBytes)}`,
    );
  } else if (progress.phase === 'saving') {
    line.update(`saving step ${progress.step}`);
  } else {
    const { step, steps, loss, norm, learningRate } = progress;
    const figures = `loss ${loss.toFixed(4)}, gradient ${norm.toPrecision(3)}, rate ${learningRate.toExponential(1)}`;
    line.update(`step ${step} of ${steps}, ${figures}`);
  }
}
