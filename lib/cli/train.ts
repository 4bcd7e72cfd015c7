import type { Command } from 'commander';

import type { TrainOptions, TrainProgress } from '../train/options';
import { train } from '../train/train';
import type { Context } from './context';
import { formatFields } from './format';
import { addLoadFlags, realNumber, wholeNumber } from './options';
import { addTrainingFlags, choiceFlag, many, watchRun } from './training-command';

type TrainFlags = Omit<TrainOptions, 'signal' | 'onProgress'>;
type OwnProgress = Extract<TrainProgress, { phase: 'training' | 'saving' }>;

const examples = `
All weights are trained by AdamW over fp32 masters, with the attentions that stream as the
checkpoint says. OUT gets a checkpoint with the same names and dtypes, every --save-every steps and
at the end, and training.json with the losses. A run that was stopped goes on from its last
checkpoint when it is started again, to the same bits.

Data are .jsonl files with {"text": "..."} or {"messages": [...]} a line, or .txt files.

Examples:
  loza train DIR --data keys.jsonl book.txt --out DIR2
  loza train DIR --data keys.jsonl --out DIR2 --loss-on answers --steps 1000 --learning-rate 3e-4`;

export function registerTrain(program: Command, context: Context): void {
  const command = program
    .command('train')
    .description('Trains a sparse or a full checkpoint on.')
    .argument('<dir>', 'checkpoint folder')
    .requiredOption('--data <files...>', 'data files: .jsonl or .txt')
    .requiredOption('--out <dir>', 'folder of the new checkpoint')
    .addOption(
      choiceFlag('--attention <name>', 'auto: as the checkpoint says; full: none streams', [
        'auto',
        'full',
      ]),
    )
    .option('--weight-decay <x>', 'decay of the matrices (default 0.1)', realNumber(0, 1e3))
    .option(
      '--clip <x>',
      'norm that the gradient is brought down to (default 1)',
      realNumber(0, 1e9),
    )
    .option(
      '--balance-rate <x>',
      'what correction biases change by at each step, to even the loads of experts (default 0)',
      realNumber(0, 1),
    )
    .addOption(choiceFlag('--loss-on <tokens>', 'tokens that count', ['all', 'answers', 'auto']))
    .option(
      '--save-every <n>',
      'steps between two checkpoints (default 100)',
      wholeNumber(1, many),
    );
  addTrainingFlags(command, { steps: 'optimiser steps', learningRate: '1e-4' });
  addLoadFlags(command, ['yarnFactor', 'device', 'dtype'])
    .addHelpText('after', examples)
    .action((dir: string, flags: TrainFlags) => run(dir, flags, context));
}

async function run(dir: string, flags: TrainFlags, context: Context): Promise<void> {
  const report = await watchRun(
    context,
    (watch) => train(dir, { ...flags, ...watch }),
    describeProgress,
  );
  if (context.json) return context.printJson(report);
  const { losses } = report;
  const fields: [string, string][] = [
    ['first loss', losses[0]?.toFixed(4) ?? ''],
    ['last loss', losses.at(-1)?.toFixed(4) ?? ''],
    ['written to', flags.out],
  ];
  context.print(formatFields(fields));
}

function describeProgress(progress: OwnProgress): string {
  if (progress.phase === 'saving') return `saving step ${progress.step}`;
  const { step, steps, loss, norm, learningRate, busiest } = progress;
  const load = busiest === undefined ? '' : `, busiest expert x ${busiest.toFixed(2)}`;
  const figures = `loss ${loss.toFixed(4)}, gradient ${norm.toPrecision(3)}, rate ${learningRate.toExponential(1)}`;
  return `step ${step} of ${steps}, ${figures}${load}`;
}
