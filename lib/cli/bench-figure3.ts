import { writeFile } from 'node:fs/promises';
import { Argument, InvalidArgumentError, Option, type Command } from 'commander';

import { planArms, planMemory, type Arm } from '../bench/ab';
import { describeVerdict } from '../bench/ab-report';
import {
  figureTests,
  measureFigure,
  predictFigure,
  type FigurePlan,
  type MeasuredFigure,
} from '../bench/figure3';
import { describeFigure, drawFigure, type FigureReport } from '../bench/figure3-report';
import { parseCount } from '../bench/grammar';
import { fullSizes } from '../bench/kernel-case';
import { measureLimitsOf } from '../bench/kernels';
import { h20 } from '../bench/limits';
import { panelContexts } from '../bench/paper';
import { readProvenance } from '../bench/provenance';
import { leastEffort, usualEffort } from '../bench/stopwatch';
import type { LoadOptions } from '../load-options';
import type { DeviceKind } from '../native/binding';
import { readBuildInfo } from './build-info';
import { BadResult, type Context } from './context';
import {
  addLoadFlags,
  checked,
  planFromFlags,
  readLoadOptions,
  usageError,
  wholeNumber,
  type LoadFlags,
} from './options';
import { startProgress } from './progress';
import { chooseKind } from './selftest';
import { usualModel, usualSizes } from './bench-stack';

type Output = 'md' | 'json' | { svg: string };

interface FigureFlags extends LoadFlags {
  from: number;
  to: number;
  chunk: number;
  batch: number;
  kernelBatch: number;
  steps: number;
  seed: number;
  gpu?: 'h20';
  svg?: string;
  output: Output;
}

/** Of a device's memory, what is left to the driver and to libraries. */
const spared = 0.06;

const examples = `
Three panels by context: streaming against full decode attention alone, and prefill and decode of
layers of real size with dummy weights, full against every other attention streaming. One pass over
the longest prompt gives the shorter ones, whose chunks it contains; decode steps run over a cache
of random rows. Checked first, as loza bench does. To 256K it takes about a minute on an H100.

Examples:
  loza bench figure3 --svg figure3.svg
  loza bench figure3 --to 1M -o json > figure3.json
  loza bench figure3 --gpu h20 --svg h20.svg    predictions from rooflines, no device needed
  loza bench figure3 --layers 2 --to 64K        quicker`;

export function registerBenchFigure3(bench: Command, context: Context): void {
  const count = (flags: string, text: string, fallback: string) =>
    new Option(flags, text).argParser(checked(parseCount)).default(parseCount(fallback), fallback);
  const command = bench
    .command('figure3')
    .description("Draws the paper's figure 3: LoZA over full attention, by context.")
    .addArgument(
      new Argument('[dir]', 'folder with config.json, or a preset').default(
        usualModel,
        `${usualModel} with ${usualSizes.layers} layers, ${usualSizes.experts} + ${usualSizes.zeroExperts} experts`,
      ),
    )
    .addOption(count('--from <n>', 'the shortest context', '4K'))
    .addOption(count('--to <n>', 'the longest context, as 256K or 1M', '256K'))
    .addOption(count('--chunk <n>', 'prompt tokens of a step', '8K'))
    .option('--batch <n>', 'decoding sequences, or what fits', wholeNumber(1, 4096), 16)
    .option('--kernel-batch <n>', 'sequences of the kernel panel', wholeNumber(1, 4096), 1)
    .option('--steps <n>', 'decode steps timed at a context', wholeNumber(1, 1000), 20)
    .option('--seed <n>', 'of the random tokens', wholeNumber(0, 2 ** 32 - 1), 1)
    .addOption(
      new Option('--gpu <name>', 'predict from the roofline of this GPU instead').choices(['h20']),
    )
    .option('--svg <file>', 'also draw the figure')
    .addOption(
      new Option('-o, --output <format>', 'md is Markdown; json; svg:FILE is md and --svg FILE')
        .argParser(parseOutput)
        .default('md'),
    );
  addLoadFlags(command, ['device', 'layers', 'experts', 'zeroExperts'])
    .addHelpText('after', examples)
    .action((dir: string, flags: FigureFlags) => figure3(dir, flags, context));
}

function parseOutput(text: string): Output {
  if (text === 'md' || text === 'json') return text;
  if (/^svg:./.test(text)) return { svg: text.slice(4) };
  throw new InvalidArgumentError('It must be md, json or svg:FILE.');
}

async function figure3(dir: string, given: FigureFlags, context: Context): Promise<void> {
  context.json ||= given.output === 'json';
  checkLengths(given);
  const sizes = dir === usualModel ? usualSizes : {};
  const flags: FigureFlags = { ...sizes, ...given, loadFormat: 'dummy' };
  const kind = flags.gpu === undefined ? chooseKind(flags.device ?? 'auto') : 'cuda';
  const whole = await planFromFlags(dir, flags);
  const stretch = flags.to / whole.maxPosition;
  const yarnFactor = stretch > 1 ? Math.ceil(stretch) : undefined;
  const base = await readLoadOptions(dir, { ...flags, yarnFactor });
  const { arms, plan } = await fitArms(dir, base, flags, kind);
  const loza = arms[1];
  const { version, commit } = readBuildInfo();
  const { layers, experts, zeroExperts, mla } = loza.plan.model;
  const model = { ...{ dir, layers, experts, zeroExperts, heads: mla.heads }, chunk: plan.chunk };
  const layerType = loza.plan.pattern?.layerType ?? '';
  const what = { ...model, layerType, yarnFactor: yarnFactor ?? null, version, commit };
  let report: FigureReport;
  if (flags.gpu !== undefined) {
    const panels = predictFigure(arms, plan, h20);
    const date = new Date().toISOString().slice(0, 10);
    const from = { predictedFor: flags.gpu, device: 'NVIDIA H20', driver: null, date };
    report = { ...what, ...from, panels, memory: [], verdict: '' };
  } else {
    const { gate, panels, memory } = await measure(dir, arms, plan, kind, context);
    const { device, driver, date } = readProvenance(kind);
    const from = { device: device.name, driver, date, verdict: describeVerdict({ gate }) };
    report = { ...what, ...from, panels, memory };
  }
  const file = typeof flags.output === 'object' ? flags.output.svg : flags.svg;
  if (file !== undefined) await writeFile(file, drawFigure(report));
  if (context.json) context.printJson(report);
  else context.print(describeFigure(report));
}

/** Contexts are doublings, and those beyond a chunk are read in whole chunks. */
function checkLengths({ from, to, chunk }: FigureFlags): void {
  const isPower = (value: number) => value >= 1 && Number.isInteger(Math.log2(value));
  if (
    from >= 64 &&
    from <= to &&
    [from / chunk, to / from].every((q) => isPower(q) || isPower(1 / q))
  )
    return;
  const hint = 'As --from 4K --to 256K --chunk 8K';
  throw usageError('--from, --to and --chunk must be powers of two times each other', hint);
}

/** Plans both arms with the batch that fits at each context: full attention decides. */
async function fitArms(
  dir: string,
  base: LoadOptions,
  flags: FigureFlags,
  kind: DeviceKind,
): Promise<{ arms: [full: Arm, loza: Arm]; plan: FigurePlan }> {
  const { from, to, chunk, kernelBatch, steps, seed } = flags;
  const planWith = (batchAt: FigurePlan['batchAt']): FigurePlan => {
    return { from, to, chunk, kernelBatch, steps, seed, batchAt };
  };
  const armsOf = async (plan: FigurePlan, names: readonly string[]) =>
    planArms(dir, names, figureTests(plan), base, kind);
  const one = planWith(() => 1);
  const [full] = (await armsOf(one, ['full'])) as [Arm];
  const { predictedPeak, kv } = planMemory(full, figureTests(one));
  const memory = flags.gpu === undefined ? readProvenance(kind).device.memoryBytes : Infinity;
  const room = memory * (1 - spared) - (predictedPeak - kv);
  const perToken = kv / (to + 128);
  const batchAt = (context: number) =>
    Math.max(1, Math.min(flags.batch, Math.floor(room / perToken / (context + 128))));
  const plan = planWith(batchAt);
  return { arms: (await armsOf(plan, ['full', 'loza'])) as [Arm, Arm], plan };
}

async function measure(
  dir: string,
  arms: readonly [Arm, Arm],
  plan: FigurePlan,
  kind: DeviceKind,
  context: Context,
): Promise<MeasuredFigure> {
  // A CPU has no tensor cores whose rate would be a limit.
  const limits = kind === 'cuda' ? await measureLimitsOf(kind, fullSizes, usualEffort) : undefined;
  const effort = kind === 'cuda' ? usualEffort : leastEffort;
  const { from, to } = plan;
  const ofKernel = panelContexts('kernel', from, to).length;
  const total = ofKernel + 4 * panelContexts('decode', from, to).length;
  const progress = startProgress(context, 'measuring', 'cases');
  let done = 0;
  const onPoint = () => progress.update(++done, total);
  const device = { kind, limits, effort };
  try {
    const figure = await measureFigure(dir, arms, plan, device, {
      signal: context.signal,
      onPoint,
    });
    if (!figure.gate.passed) throw new BadResult(describeVerdict(figure));
    return figure;
  } finally {
    progress.stop();
  }
}
