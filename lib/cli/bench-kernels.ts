import { Option, type Command } from 'commander';

import { fullSizes, smallSizes, type KernelCase } from '../bench/kernel-case';
import { kernelCases, runKernels } from '../bench/kernels';
import { readProvenance } from '../bench/provenance';
import { leastEffort, usualEffort } from '../bench/stopwatch';
import { describeKernels, describePredictions, predict } from '../bench/tables';
import { h20 } from '../bench/limits';
import { readBuildInfo } from './build-info';
import { BadResult, type Context } from './context';
import { chooseKind, parseRegex } from './selftest';
import { addLoadFlags, usageError, type LoadFlags } from './options';
import { startProgress } from './progress';

interface KernelFlags extends Pick<LoadFlags, 'device'> {
  case?: RegExp;
  gpu?: 'h20';
  small?: boolean;
  output: 'md' | 'json';
}

const examples = `
Operations are recorded as graphs and replayed between two readings of the device's clock; a figure
is the median of the replays. Inputs are random, block tables shuffled; what a real run finds cold
is rotated through more memory than the L2 holds. Results are checked to be finite first.
"Of limit" compares with bytes or FLOPs at the rates measured in the same run.

Examples:
  loza bench kernels --device cuda -o json > kernels.json
  loza bench kernels --case "^decode: streaming"
  loza bench kernels --gpu h20                 predictions, no device needed`;

export function registerBenchKernels(bench: Command, context: Context): void {
  const command = bench
    .command('kernels')
    .description('Times single operations at the sizes of LongCat-Flash against their limits.')
    .option('--case <regex>', 'only cases whose "table: name" matches', parseRegex)
    .addOption(
      new Option('--gpu <name>', 'predict by the roofline of this GPU instead').choices(['h20']),
    )
    .option('--small', 'small sizes and one replay: whether it runs, not how fast')
    .addOption(
      new Option('-o, --output <format>', 'md is Markdown').choices(['md', 'json']).default('md'),
    );
  addLoadFlags(command, ['device'])
    .addHelpText('after', examples)
    .action((flags: KernelFlags) => benchKernels(flags, context));
}

async function benchKernels(flags: KernelFlags, context: Context): Promise<void> {
  context.json ||= flags.output === 'json';
  const sizes = flags.small ? smallSizes : fullSizes;
  const cases = chooseCases(kernelCases(sizes), flags.case);
  if (flags.gpu !== undefined) {
    if (context.json)
      context.printJson({ gpu: flags.gpu, limits: h20, predictions: predict(cases) });
    else context.print(describePredictions(cases));
    return;
  }
  const kind = chooseKind(flags.device ?? 'auto');
  const progress = startProgress(context, 'measuring', 'cases');
  try {
    const report = await runKernels(cases, {
      ...{ kind, sizes, effort: flags.small ? leastEffort : usualEffort, signal: context.signal },
      onCase: (done, total) => progress.update(done, total),
    });
    progress.stop();
    const from = { ...readBuildInfo(), ...readProvenance(kind) };
    if (context.json) context.printJson({ ...from, small: sizes.small, ...report });
    else context.print(`${from.device.name} (${kind})\n\n${describeKernels(report)}`);
    const failed = report.rows.filter(({ failure }) => failure !== undefined).length;
    if (failed > 0) throw new BadResult(`${failed} of ${report.rows.length} cases failed`);
  } finally {
    progress.stop();
  }
}

function chooseCases(cases: readonly KernelCase[], wanted: RegExp | undefined): KernelCase[] {
  const chosen = cases.filter(({ table, name }) => wanted?.test(`${table}: ${name}`) ?? true);
  if (chosen.length > 0) return chosen;
  const tables = [...new Set(cases.map(({ table }) => table))].join(', ');
  throw usageError(`no case matches ${String(wanted)}`, `There are the tables ${tables}`);
}
