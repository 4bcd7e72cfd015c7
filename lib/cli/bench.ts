import type { Command } from 'commander';

import { registerBenchCompare } from './bench-compare';
import { registerBenchFigure3 } from './bench-figure3';
import { registerBenchKernels } from './bench-kernels';
import { registerBenchModel } from './bench-model';
import { registerBenchStack } from './bench-stack';
import type { Context } from './context';

const examples = `
Examples:
  loza bench models/loza-tiny              the same as loza bench model models/loza-tiny
  loza bench -p 512-4K*2 -n 64 -d 0,2K     see loza bench model --help
  loza bench longcat-flash --load-format dummy --layers 4 --experts 64 --zero-experts 32
  loza bench compare before.json after.json --fail-below 0.97
  loza bench figure3 --svg figure3.svg
  loza bench kernels --device cuda
  loza bench stack --device cuda`;

export function registerBench(program: Command, context: Context): void {
  const bench = program
    .command('bench')
    .description('Measures a model in tokens a second, single operations, or a stack of layers.')
    .addHelpText('after', examples);
  // The model is a command of its own: flags of a command with subcommands would take theirs.
  registerBenchModel(bench, context);
  registerBenchCompare(bench, context);
  registerBenchFigure3(bench, context);
  registerBenchKernels(bench, context);
  registerBenchStack(bench, context);
}
