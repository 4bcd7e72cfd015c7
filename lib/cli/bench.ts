import { Argument, Option, type Command } from 'commander';

import { readProvenance } from '../bench/provenance';
import { markdownTable } from '../bench/tables';
import type { LanguageModel } from '../language-model';
import type { DeviceKind } from '../native/binding';
import { registerBenchKernels } from './bench-kernels';
import { registerBenchStack } from './bench-stack';
import { bundledModel, readBuildInfo } from './build-info';
import type { Context } from './context';
import { formatCount, formatRate } from './format';
import { withModel } from './open-model';
import {
  addLoadFlags,
  dummyFlags,
  listOf,
  parseAttention,
  planFromFlags,
  readLoadOptions,
  usageError,
  wholeNumber,
  type LoadFlags,
} from './options';
import { startProgress, type Progress } from './progress';

interface BenchFlags extends Omit<LoadFlags, 'attention'> {
  prompt: number[];
  generate: number;
  repeat: number;
  attention: string[];
  seed: number;
  output: 'md' | 'json';
}

interface Statistics {
  mean: number;
  /** Sample standard deviation; 0 for one run. */
  sd: number;
}

interface BenchRow {
  attention: string;
  layerType: string;
  device: DeviceKind;
  promptTokens: number;
  newTokens: number;
  runs: number;
  /** Tokens a second until the first new one, and after it. */
  prefill: Statistics;
  decode: Statistics;
  kvResidentBytes: number;
}

const defaultPrompts = [512, 4096];
const defaultAttentions = ['full', 'auto'];

const groupExamples = `
Examples:
  loza bench models/loza-tiny              the same as loza bench model models/loza-tiny
  loza bench longcat-flash --load-format dummy --layers 4 --experts 64 --zero-experts 32
  loza bench kernels --device cuda
  loza bench stack --device cuda`;

const examples = `
Prompts are random tokens. Each line is the mean ± standard deviation of the runs after a warm-up.
Prefill is prompt tokens over the time to the first new token; decode is the rate after it.
One sequence at a time, so this is latency and not throughput.

Examples:
  loza bench models/loza-tiny -p 512,4096 -n 64 -r 3
  loza bench DIR -p 8192 --attention full,auto -o json > bench.json`;

export function registerBench(program: Command, context: Context): void {
  const most = 2 ** 24;
  const bench = program
    .command('bench')
    .description('Measures a model in tokens a second, single operations, or a stack of layers.')
    .addHelpText('after', groupExamples);
  registerBenchKernels(bench, context);
  registerBenchStack(bench, context);
  // A command of its own, since flags of a command with subcommands would take theirs.
  const command = bench
    .command('model', { isDefault: true })
    .description('Measures prefill and decode in tokens a second (default).')
    .addArgument(
      new Argument('[dir]', 'checkpoint folder, or a preset').default(
        bundledModel,
        'the bundled loza-tiny',
      ),
    )
    .addOption(
      new Option('-p, --prompt <n,...>', 'prompt lengths')
        .argParser(listOf(wholeNumber(1, most)))
        .default(defaultPrompts, defaultPrompts.join()),
    )
    .option('-n, --generate <n>', 'new tokens', wholeNumber(2, most), 64)
    .option('-r, --repeat <n>', 'runs', wholeNumber(1, 1000), 3)
    .addOption(
      new Option('--attention <list>', 'auto, full or patterns such as 10111000, commas between')
        .argParser(listOf(parseAttention))
        .default(defaultAttentions, defaultAttentions.join()),
    )
    .option('--seed <n>', 'of the random prompts', wholeNumber(0, 2 ** 32 - 1), 1)
    .addOption(
      new Option('-o, --output <format>', 'md is a table in Markdown')
        .choices(['md', 'json'])
        .default('md'),
    );
  const names = ['device', 'dtype', 'chunkTokens', 'maxTokens', 'yarnFactor'] as const;
  addLoadFlags(command, [...names, 'sinkBlocks', 'localBlocks', ...dummyFlags])
    .addHelpText('after', examples)
    .action((dir: string, flags: BenchFlags) => benchModel(dir, flags, context));
}

async function benchModel(dir: string, flags: BenchFlags, context: Context): Promise<void> {
  context.json ||= flags.output === 'json';
  const longest = Math.max(...flags.prompt) + flags.generate - 1;
  const { yarnFactor, loadFormat, layers, experts, zeroExperts } = flags;
  const planFlags = { yarnFactor, loadFormat, layers, experts, zeroExperts };
  const { maxPosition } = await planFromFlags(dir, planFlags);
  if (longest > maxPosition) {
    const positions = `${formatCount(longest)} positions, but the model has ${formatCount(maxPosition)}`;
    throw usageError(`-p and -n need ${positions}`, 'Shorten them, or give --yarn-factor');
  }
  const rows: BenchRow[] = [];
  const progress = startProgress(context, 'measuring', 'runs');
  try {
    for (const attention of flags.attention) {
      const maxTokens = flags.maxTokens ?? longest;
      const options = await readLoadOptions(dir, blocksOnlyWhereStreaming(flags, attention));
      await withModel(dir, { ...options, maxTokens }, context, async (model) => {
        for (const promptTokens of flags.prompt) {
          rows.push(await measure(model, { attention, promptTokens }, flags, context, progress));
        }
      });
    }
  } finally {
    progress.stop();
  }
  const kind = rows[0]?.device ?? 'cpu';
  const from = { ...readBuildInfo(), ...readProvenance(kind) };
  if (context.json) context.printJson({ ...from, dir, seed: flags.seed, rows });
  else context.print(describe(rows));
}

/** Full attention has no blocks to choose, but stands beside patterns that have. */
function blocksOnlyWhereStreaming(flags: BenchFlags, attention: string): LoadFlags {
  const none = { sinkBlocks: undefined, localBlocks: undefined };
  return { ...flags, attention, ...(attention === 'full' ? none : {}) };
}

async function measure(
  model: LanguageModel,
  { attention, promptTokens }: { attention: string; promptTokens: number },
  { generate, repeat, seed }: BenchFlags,
  context: Context,
  progress: Progress,
): Promise<BenchRow> {
  const random = randomIntegers(seed, model.info.vocabSize);
  const prefill: number[] = [];
  const decode: number[] = [];
  let kvResidentBytes = 0;
  for (let run = -1; run < repeat; run++) {
    const prompt = Int32Array.from({ length: promptTokens }, random);
    const options = { maxNewTokens: generate, temperature: 0, ignoreEos: true };
    const generation = model.generate(prompt, { ...options, signal: context.signal });
    const { timings, kv } = await generation.result();
    progress.update(run + 1, repeat);
    if (run < 0) continue; // the warm-up
    prefill.push(timings.prefillTokensPerSecond);
    decode.push(timings.decodeTokensPerSecond);
    kvResidentBytes = kv.residentBytes;
  }
  const { layerType, device } = model.info;
  const what = { attention, layerType, device, promptTokens, newTokens: generate, runs: repeat };
  return { ...what, prefill: statistics(prefill), decode: statistics(decode), kvResidentBytes };
}

export function statistics(values: readonly number[]): Statistics {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, sd: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0 };
}

/** Integers of 0..below-1 that a seed decides (mulberry32). */
export function randomIntegers(seed: number, below: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return Math.floor((((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

function describe(rows: readonly BenchRow[]): string {
  const spread = ({ mean, sd }: Statistics) => `${formatRate(mean)} ± ${formatRate(sd)}`;
  const cells = rows.map(({ attention, promptTokens, newTokens, prefill, decode }) => [
    attention,
    formatCount(promptTokens),
    formatCount(newTokens),
    spread(prefill),
    spread(decode),
  ]);
  const titles = ['attention', 'prompt', 'new', 'prefill tokens/s', 'decode tokens/s'];
  return markdownTable([titles, ['---', '---:', '---:', '---:', '---:'], ...cells]);
}
