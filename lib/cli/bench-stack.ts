import { performance } from 'node:perf_hooks';
import { Argument, Option, type Command } from 'commander';

import { everyOther, realExpertShare } from '../bench/arms';
import { smallSizes, fullSizes } from '../bench/kernel-case';
import { measureLimitsOf } from '../bench/kernels';
import { readProvenance } from '../bench/provenance';
import { fillCaches, measureStep, type StackRow, type StackStep } from '../bench/stack';
import { describeStack, type StackReport } from '../bench/stack-tables';
import { leastEffort, usualEffort } from '../bench/stopwatch';
import { loadModel } from '../load-model';
import { resolveLoadOptions } from '../load-options';
import { readBuildInfo } from './build-info';
import type { Context } from './context';
import {
  addLoadFlags,
  listOf,
  planFromFlags,
  readLoadOptions,
  wholeNumber,
  type LoadFlags,
} from './options';
import { startProgress } from './progress';
import { chooseKind } from './selftest';

interface StackFlags extends LoadFlags {
  prompt: number;
  context: number;
  batch: number[];
  runs: number;
  small?: boolean;
  output: 'md' | 'json';
}

export const usualModel = 'longcat-flash';
/** What of it fits one GPU with 80 GB, half of its choices zero experts as in the whole. */
export const usualSizes = { layers: 4, experts: 64, zeroExperts: 32 };

const examples = `
Weights are random, made on the device. Where the config has no streaming attentions, every other
one streams. A step is measured as the engine takes it, and on the device's own clock as a recorded
graph: bare, and with a reading of the clock behind every operation. What a reading adds bounds the
gap between two kernels; it is taken off each operation.

Examples:
  loza bench stack --device cuda
  loza bench stack models/loza-tiny --prompt 512 --context 512 --batch 1,4`;

export function registerBenchStack(bench: Command, context: Context): void {
  const most = 2 ** 20;
  const command = bench
    .command('stack')
    .description('Times prefill and decode steps of layers with dummy weights, by operation.')
    .addArgument(
      new Argument('[dir]', 'folder with config.json, or a preset').default(
        usualModel,
        `${usualModel} with ${usualSizes.layers} layers, ${usualSizes.experts} + ${usualSizes.zeroExperts} experts`,
      ),
    )
    .option('-p, --prompt <n>', 'tokens of the prefill step', wholeNumber(1, most), 8192)
    .option('--context <n>', 'tokens of a decoding sequence', wholeNumber(1, most), 8192)
    .addOption(
      new Option('--batch <n,...>', 'sequences of the decode steps')
        .argParser(listOf(wholeNumber(1, 4096)))
        .default([1, 32], '1,32'),
    )
    .option('-r, --runs <n>', 'runs of each step', wholeNumber(1, 1000), 20)
    .option('--small', 'measure the limits with small sizes, for a CPU')
    .addOption(
      new Option('-o, --output <format>', 'md is Markdown').choices(['md', 'json']).default('md'),
    );
  addLoadFlags(command, ['device', 'attention', 'layers', 'experts', 'zeroExperts'])
    .addHelpText('after', examples)
    .action((dir: string, flags: StackFlags) => benchStack(dir, flags, context));
}

async function benchStack(dir: string, given: StackFlags, context: Context): Promise<void> {
  context.json ||= given.output === 'json';
  const { signal } = context;
  const sizes = dir === usualModel ? usualSizes : {};
  const flags: StackFlags = { ...sizes, ...given, loadFormat: 'dummy' };
  const plan = await planFromFlags(dir, flags);
  const kind = chooseKind(flags.device ?? 'auto');
  const limits = flags.small
    ? await measureLimitsOf(kind, smallSizes, leastEffort)
    : await measureLimitsOf(kind, fullSizes, usualEffort);
  const { prompt, batch, runs } = flags;
  const capacity = Math.max(prompt, Math.max(...batch) * (flags.context + 128));
  const attention =
    flags.attention ?? (plan.pattern === undefined ? everyOther(plan.model.attentions) : 'auto');
  const options = resolveLoadOptions({
    ...(await readLoadOptions(dir, { ...flags, attention })),
    ...{ device: kind, maxTokens: capacity, maxSequences: Math.max(...batch), signal },
    ...{ chunkTokens: Math.max(prompt, flags.context), prefixCache: false },
  });
  const progress = startProgress(context, 'measuring', 'runs');
  const start = performance.now();
  const loaded = await loadModel(dir, options);
  const loadMs = performance.now() - start;
  try {
    fillCaches(loaded);
    const steps = stackSteps(flags);
    const rows: StackRow[] = [];
    for (const step of steps) {
      progress.update(rows.length, steps.length);
      const few = step.count > 1 ? Math.min(runs, 5) : runs;
      const realExperts = realExpertShare(plan);
      rows.push(await measureStep(loaded, step, { limits, realExperts, runs: few, signal }));
    }
    progress.stop();
    const from = { ...readBuildInfo(), ...readProvenance(kind) };
    const { layers, experts } = loaded.plan.model;
    const { weights, peak } = loaded.device.memory();
    const what = { dir, layers, experts, layerType: loaded.plan.pattern?.layerType ?? '' };
    const report: StackReport = { ...what, loadMs, weights, peak, limits, rows };
    if (context.json) context.printJson({ ...from, ...report });
    else context.print(`${from.device.name} (${kind})\n\n${describeStack(report)}`);
  } finally {
    progress.stop();
    loaded.device.close();
  }
}

/** Decode steps end at the context, so that they stay within a bucket of recorded graphs. */
function stackSteps({ prompt, context, batch, runs }: StackFlags): StackStep[] {
  const position = Math.max(0, context - runs - 3);
  return [
    { name: `prefill, ${prompt} tokens`, batch: 1, count: prompt, position: 0 },
    ...batch.map((batch) => ({
      ...{ name: `decode, batch ${batch}, context ${context}`, batch, count: 1, position },
    })),
  ];
}
