import { Argument, InvalidArgumentError, Option, type Command } from 'commander';

import { compareArms, isDummy, planArms, type Arm, type Comparison } from '../bench/ab';
import {
  benchRows,
  describeOrigin,
  describePlanned,
  describeRows,
  describeVerdict,
  formatCsv,
  planRows,
  type BenchOrigin,
  type BenchRow,
} from '../bench/ab-report';
import type { Blocks } from '../bench/arms';
import { expandTests, parseCounts, parsePair, testLength, type BenchTest } from '../bench/grammar';
import { fullSizes } from '../bench/kernel-case';
import { measureLimitsOf } from '../bench/kernels';
import { readProvenance } from '../bench/provenance';
import { usualEffort } from '../bench/stopwatch';
import { describePlan } from '../model-info';
import type { DeviceKind } from '../native/binding';
import { bundledModel, readBuildInfo } from './build-info';
import { BadResult, type Context } from './context';
import { formatCount } from './format';
import {
  addLoadFlags,
  checked,
  dummyFlags,
  listOf,
  planFromFlags,
  readLoadOptions,
  usageError,
  wholeNumber,
  type LoadFlags,
} from './options';
import { startProgress } from './progress';
import { chooseKind } from './selftest';

interface BenchFlags extends Omit<LoadFlags, 'attention'> {
  prompt: number[];
  generate: number[];
  inputLen?: number[];
  outputLen?: number[];
  pg?: [number, number][];
  depth: number[];
  batchSize: number[];
  budget: number[];
  ubatchSize?: number[];
  repeat: number;
  numIters?: number;
  warmup: boolean;
  profile: boolean;
  attention?: string[];
  seed: number;
  dryRun?: boolean;
  output: 'md' | 'json' | 'jsonl' | 'csv';
}

const examples = `
Tests are those of llama-bench: pp512 reads a prompt of 512 tokens and samples the first new one,
tg128 decodes 128, -pg 512,128 does both; "@ d8192" starts with 8,192 tokens in the cache. Numbers
are lists and ranges (128,512 or 512-8K*2 or 1K-4K+1K); 1K is 1,024 and 1k is 1,000; 0 leaves a kind
of test out. --batch-size counts sequences, as vLLM and SGLang have it; -b and -ub count the tokens
of a step, as llama-bench has them (the smaller one holds).

Tokens are random, decided by --seed, and the same in every arm of --attention: full (none streams),
loza (as the config says; every other one for dummy weights without a pattern) or digits. The first
arm is what the speed-ups refer to. Before an arm is timed, its logits must be finite, recorded and
eager decode steps must agree, and so must the arms on a prompt that every window holds.
"of the roofline": the sum of all operations at the limits measured in the same run, over the time
(on a GPU).
"attention share": of the operations of a typical step, on the device's clock.

Examples:
  loza bench models/loza-tiny -p 512,4096 -n 64 -r 3
  loza bench DIR -p 8K -n 128 -d 0,32K,128K -o json > bench.json
  loza bench DIR -pg 8K,256 --batch-size 1-16*4 --attention full,loza
  loza bench longcat-flash --load-format dummy --layers 4 --experts 64 --zero-experts 32 -d 64K
  loza bench longcat-flash --load-format dummy --layers 4 -p 8K -d 128K --dry-run`;

export function registerBenchModel(bench: Command, context: Context): void {
  const command = bench
    .command('model', { isDefault: true })
    .description('Measures a model in tokens a second, arms of attention side by side (default).')
    .addArgument(
      new Argument('[dir]', 'checkpoint folder, or a preset').default(
        bundledModel,
        'the bundled loza-tiny',
      ),
    );
  const counts = (flags: string, text: string, fallback?: string) => {
    const option = new Option(flags, text).argParser(checked(parseCounts));
    return fallback === undefined ? option : option.default(parseCounts(fallback), fallback);
  };
  const pair = checked(parsePair);
  const pairs = (text: string, before: [number, number][] = []) => [...before, pair(text)];
  command
    .addOption(counts('-p, --prompt <n,...>', 'prompt lengths (pp)', '512'))
    .addOption(counts('-n, --generate <n,...>', 'generated tokens (tg)', '128'))
    .addOption(new Option('--pg <pp,tg>', 'also -pg: one after the other').argParser(pairs))
    .addOption(counts('-d, --depth <n,...>', 'tokens in the cache before the test', '0'))
    .addOption(counts('-b, --budget <n,...>', 'tokens of a step', '8192'))
    .addOption(counts('--ubatch-size <n,...>', 'also -ub: prompt tokens of a step'))
    .addOption(counts('--batch-size <n,...>', 'sequences', '1'))
    .option('-r, --repeat <n>', 'repetitions', wholeNumber(1, 1000), 5)
    .addOption(counts('--input-len <n,...>', 'the same as -p'))
    .addOption(counts('--output-len <n,...>', 'the same as -n'))
    .option('--num-iters <n>', 'the same as -r', wholeNumber(1, 1000))
    .option('--no-warmup', 'time from the first run on')
    .option('--no-profile', "leave out attention's share, which replays a step with the clock")
    .addOption(
      new Option('--attention <list>', 'arms: full, loza or digits (default full,loza)').argParser(
        listOf(parseArm),
      ),
    )
    .option('--seed <n>', 'of the random tokens', wholeNumber(0, 2 ** 32 - 1), 1)
    .option('--dry-run', 'print what it would take in memory; load and time nothing')
    .addOption(
      new Option('-o, --output <format>', 'md is Markdown')
        .choices(['md', 'json', 'jsonl', 'csv'])
        .default('md'),
    );
  addLoadFlags(command, [
    ...(['device', 'dtype', 'kvDtype', 'yarnFactor', 'sinkBlocks', 'localBlocks'] as const),
    ...dummyFlags,
  ])
    .addHelpText('after', examples)
    .action((dir: string, flags: BenchFlags) => benchModel(dir, flags, context));
}

function parseArm(text: string): string {
  if (['full', 'loza', 'auto'].includes(text) || /^[01]+$/.test(text)) return text;
  throw new InvalidArgumentError('It must be full, loza or a pattern of 0 and 1, as 10111000.');
}

async function benchModel(dir: string, flags: BenchFlags, context: Context): Promise<void> {
  if (context.json) flags.output = 'json';
  context.json = flags.output !== 'md';
  const tests = readTests(flags);
  const { arms, kind } = await readArms(dir, flags, tests);
  if (flags.dryRun) return printPlan(arms, tests, kind, context);
  const limits = kind === 'cuda' ? await measureLimitsOf(kind, fullSizes, usualEffort) : undefined;
  const origin = readOrigin(arms, flags, kind);
  const progress = startProgress(context, 'measuring', 'runs');
  const repetitions = flags.numIters ?? flags.repeat;
  let comparison: Comparison;
  try {
    let runs = 0;
    const onRun = () => progress.update(++runs, arms.length * tests.length * repetitions);
    const { signal } = context;
    const run = { repetitions, warmUp: flags.warmup, seed: flags.seed, signal, onRun };
    const randomDepth = origin.depth_fill === 'random';
    comparison = await compareArms(dir, arms, tests, {
      ...{ limits, attention: flags.profile, run: { ...run, randomDepth } },
    });
  } finally {
    progress.stop();
  }
  if (!comparison.gate.passed) throw new BadResult(describeVerdict(comparison));
  printRows(benchRows(comparison, origin), comparison, flags.output, context);
}

function readTests(flags: BenchFlags): BenchTest[] {
  const { prompt, generate, depth, batchSize, budget, ubatchSize = [0], pg } = flags;
  const chunks = budget.flatMap((b) => ubatchSize.map((ub) => (ub > 0 ? Math.min(b, ub) : b)));
  if ([...batchSize, ...budget].some((n) => n < 1)) {
    throw usageError('-b and --batch-size must be at least 1');
  }
  const tests = expandTests({
    prompts: flags.inputLen ?? prompt,
    generates: flags.outputLen ?? generate,
    pairs: pg ?? [],
    depths: depth,
    batches: batchSize,
    chunks: [...new Set(chunks)],
  });
  if (tests.length > 0) return tests;
  throw usageError('no test is left', 'Give -p, -n or -pg a number above 0');
}

async function readArms(
  dir: string,
  flags: BenchFlags,
  tests: readonly BenchTest[],
): Promise<{ arms: Arm[]; kind: DeviceKind }> {
  const { sinkBlocks, localBlocks, attention, ...rest } = flags;
  const plain: LoadFlags = { ...rest };
  const plan = await planFromFlags(dir, plain);
  const longest = Math.max(...tests.map(testLength));
  if (longest > plan.maxPosition) {
    const positions = `${formatCount(longest)} positions, but the model has ${formatCount(plan.maxPosition)}`;
    throw usageError(`the tests need ${positions}`, 'Shorten them, or give --yarn-factor');
  }
  const streams = plan.pattern !== undefined || plan.checkpoint.files.length === 0;
  const names = attention ?? (streams ? ['full', 'loza'] : ['full']);
  const blocks: Blocks = {
    ...(sinkBlocks === undefined ? {} : { sinkBlocks }),
    ...(localBlocks === undefined ? {} : { localBlocks }),
  };
  const kind = chooseKind(flags.device ?? 'auto');
  const options = await readLoadOptions(dir, plain);
  return { arms: await planArms(dir, names, tests, options, kind, blocks), kind };
}

function readOrigin(arms: readonly Arm[], flags: BenchFlags, kind: DeviceKind): BenchOrigin {
  const { version, commit } = readBuildInfo();
  const { device, driver } = readProvenance(kind);
  const [arm] = arms as [Arm];
  const { architecture, parameters } = describePlan(arm.plan);
  const dummy = isDummy(arm);
  return {
    ...{ build_commit: commit, build_version: version, backend: kind, gpu_info: device.name },
    ...{ driver, test_time: new Date().toISOString() },
    ...{ model_type: architecture, model_size: arm.dry.bytes.weights, model_n_params: parameters },
    ...{ weights: dummy ? 'dummy' : 'checkpoint', depth_fill: dummy ? 'random' : 'computed' },
    ...{ decode_graphs: kind === 'cuda', prefix_cache: false, seed: flags.seed },
  };
}

function printPlan(
  arms: readonly Arm[],
  tests: readonly BenchTest[],
  kind: DeviceKind,
  context: Context,
): void {
  const rows = planRows(arms, tests);
  const { device } = readProvenance(kind);
  if (context.json) context.printJson({ dry_run: true, device, arms: rows });
  else context.print(describePlanned(rows, device.memoryBytes));
}

function printRows(
  rows: readonly BenchRow[],
  comparison: Comparison,
  format: BenchFlags['output'],
  context: Context,
): void {
  if (format === 'json') context.printJson(rows);
  else if (format === 'jsonl') for (const row of rows) context.printJson(row);
  else if (format === 'csv') context.print(formatCsv(rows));
  else {
    context.print(`${describeOrigin(rows, describeVerdict(comparison))}\n\n${describeRows(rows)}`);
  }
}
