import { Option, type Command } from 'commander';

import type { LanguageModel } from '../language-model';
import { compareGreedy, compareLogits, type GreedyComparison } from './compare';
import { BadResult, type Context } from './context';
import { readExpected, type ExpectedPrompt } from './expected';
import { formatCount, formatTable, formatTiny, plural } from './format';
import { withModel } from './open-model';
import {
  addLoadFlags,
  listOf,
  readLoadOptions,
  realNumber,
  wholeNumber,
  type LoadFlags,
} from './options';
import { startProgress } from './progress';
import { verifyBatches, type BatchVerdict } from './verify-batch';
import { verifyPaths, type PathVerdict } from './verify-paths';

type Metric = 'error' | 'cosine';

interface VerifyFlags extends LoadFlags {
  metric: Metric | 'auto';
  tolerance?: number;
  margin?: number;
  batch: number[];
  paths?: boolean;
}

interface Limits {
  metric: Metric;
  tolerance: number;
  margin: number;
}

/** What the prompts gave one after another, and where. */
interface Checked {
  device: string;
  dtype: string;
  kvDtype: string;
  limits: Limits;
  verdicts: PromptVerdict[];
}

interface PromptVerdict {
  name: string;
  tokens: number;
  positions: number;
  maxError: number;
  cosine: number;
  greedy: GreedyComparison;
  passed: boolean;
}

/** Of the largest error as a fraction of the logits' standard deviation, and of 1 - cosine. */
const defaultTolerance = { error: 1e-3, cosine: 1e-3 } as const;
/** Rounding to bfloat16 moves logits by more than a close win. */
const defaultMargin: Record<Metric, number> = { error: 0.01, cosine: 0.3 };

const right = { align: 'right' } as const;

const examples = `
DIR/expected.safetensors holds, for each prompt NAME, what another implementation computed:
NAME.input_ids, NAME.positions, NAME.logits and, if known, NAME.greedy (the likeliest tokens).

error is the largest difference of a logit, as a fraction of the logits' standard deviation.
Greedy tokens must be equal up to the first one that won by no more than --margin.
--batch continues each prompt again among random ones, in batches of these sizes: its greedy tokens
must be as expected there too, and recorded decode steps must give the bits of eager ones.
--paths answers each prompt again on every path that the engine has: in chunks of several sizes,
token by token, in company, from recorded steps, from the prefix cache, in sessions and forks, with
its blocks taken by others, from the host's memory, preempted, and by scores.
A mismatch gives exit code 1.

Examples:
  loza verify models/loza-tiny
  loza verify test/golden/longcat-full --tolerance 1e-4
  loza verify models/loza-tiny --device cuda --batch 1,7,64
  loza verify models/loza-tiny --paths
  loza verify models/loza-tiny --kv-dtype fp8
  loza verify DIR --metric cosine           for bfloat16`;

export function registerVerify(program: Command, context: Context): void {
  const command = program
    .command('verify')
    .description("Runs a checkpoint's expected.safetensors and shows the errors.")
    .argument('<dir>', 'checkpoint folder with expected.safetensors')
    .addOption(
      new Option('--metric <name>', 'auto: error in float32, cosine in bfloat16')
        .choices(['auto', 'error', 'cosine'])
        .default('auto'),
    )
    .option(
      '--tolerance <x>',
      'allowed error, or distance of the cosine from 1 (default 1e-3)',
      realNumber(0, 1e6),
    )
    .option(
      '--margin <x>',
      'win of a greedy token that need not be kept (default 0.01; in bfloat16 0.3)',
      realNumber(0, 1e6),
    )
    .addOption(
      new Option('--batch <n,...>', 'sizes of batches to generate in, too')
        .argParser(listOf(wholeNumber(1, 4096)))
        .default([], 'none'),
    )
    .option('--paths', 'answer on every path that the engine has, too');
  addLoadFlags(command, [
    ...(['device', 'attention', 'sinkBlocks', 'localBlocks', 'dtype', 'kvDtype'] as const),
    ...(['yarnFactor', 'maxTokens', 'stepTokens', 'chunkTokens'] as const),
  ])
    .addHelpText('after', examples)
    .action((dir: string, flags: VerifyFlags) => verify(dir, flags, context));
}

async function verify(dir: string, flags: VerifyFlags, context: Context): Promise<void> {
  const prompts = await readExpected(dir);
  // What the cache holds would not be computed.
  const options = { ...(await readLoadOptions(dir, flags)), prefixCache: false };
  const { device, dtype, kvDtype, limits, verdicts } = await withModel(
    dir,
    options,
    context,
    (model) => checkPrompts(model, prompts, flags, context),
  );
  const wanted = { batches: flags.batch, margin: limits.margin };
  const batches = await verifyBatches(dir, options, prompts, wanted, context);
  const paths = flags.paths ? await verifyPaths(dir, options, prompts, limits, context) : [];
  const failed = verdicts.filter(({ passed }) => !passed).length;
  const others = [...batches, ...paths];
  const passed = failed === 0 && others.every((other) => other.passed);
  if (context.json) {
    const origin = { dir, device, dtype, kvDtype };
    context.printJson({ ...origin, ...limits, prompts: verdicts, batches, paths, passed });
  } else {
    const where = `${device}, ${dtype}${kvDtype === dtype ? '' : `, KV cache ${kvDtype}`}`;
    context.print(describe({ verdicts, batches, paths, passed }, limits, where));
  }
  if (passed) return;
  const which =
    failed > 0 ? `${failed} of ${plural(verdicts.length, 'prompt')}` : 'batches or paths';
  throw new BadResult(`${which} of ${dir} did not give what was expected`);
}

async function checkPrompts(
  model: LanguageModel,
  prompts: readonly ExpectedPrompt[],
  flags: VerifyFlags,
  context: Context,
): Promise<Checked> {
  const { device, dtype, kvDtype } = model.info;
  const auto = kvDtype === 'float32' ? 'error' : 'cosine';
  const metric = flags.metric === 'auto' ? auto : flags.metric;
  const tolerance = flags.tolerance ?? defaultTolerance[metric];
  const limits = { metric, tolerance, margin: flags.margin ?? defaultMargin[metric] };
  const verdicts: PromptVerdict[] = [];
  for (const prompt of prompts) verdicts.push(await checkPrompt(model, prompt, limits, context));
  return { device, dtype, kvDtype, limits, verdicts };
}

async function checkPrompt(
  model: LanguageModel,
  prompt: ExpectedPrompt,
  limits: Limits,
  context: Context,
): Promise<PromptVerdict> {
  const { name, inputIds, positions, vocabSize, greedy } = prompt;
  const progress = startProgress(context, name);
  try {
    const { signal } = context;
    const onProgress = ({ done, total }: { done: number; total: number }) =>
      progress.update(done, total);
    const { logits } = await model.score(inputIds, { positions, signal, onProgress });
    const { maxError, cosine } = compareLogits(logits, prompt.logits, vocabSize);
    const tokens = greedy.length === 0 ? [] : await continueGreedily(model, prompt, signal);
    const compared = compareGreedy(tokens, greedy, prompt.margins, limits.margin);
    const close =
      limits.metric === 'error' ? maxError <= limits.tolerance : cosine >= 1 - limits.tolerance;
    return {
      name,
      tokens: inputIds.length,
      positions: positions.length,
      maxError,
      cosine,
      greedy: compared,
      passed: close && compared.passed,
    };
  } finally {
    progress.stop();
  }
}

async function continueGreedily(
  model: LanguageModel,
  { inputIds, greedy }: ExpectedPrompt,
  signal: AbortSignal,
): Promise<Int32Array> {
  const options = { temperature: 0, repetitionPenalty: 1, ignoreEos: true, signal };
  const generation = model.generate(inputIds, { ...options, maxNewTokens: greedy.length });
  return (await generation.result()).tokens;
}

function describe(
  checked: {
    verdicts: readonly PromptVerdict[];
    batches: readonly BatchVerdict[];
    paths: readonly PathVerdict[];
    passed: boolean;
  },
  { metric, tolerance, margin }: Limits,
  where: string,
): string {
  const limit = metric === 'error' ? `error up to ${tolerance}` : `cosine from ${1 - tolerance}`;
  const rule = `allowed: ${limit}; greedy tokens that won by more than ${margin} equal; ${where}`;
  return [
    describePrompts(checked.verdicts),
    ...(checked.batches.length === 0 ? [] : [describeBatches(checked.batches)]),
    ...(checked.paths.length === 0 ? [] : [describePaths(checked.paths)]),
    `${checked.passed ? 'PASS' : 'FAIL'}  ${rule}`,
  ].join('\n\n');
}

function describePrompts(verdicts: readonly PromptVerdict[]): string {
  const columns = [
    { title: 'prompt' },
    { title: 'tokens', ...right },
    { title: 'logits at', ...right },
    { title: 'error', ...right },
    { title: 'cosine', ...right },
    { title: 'greedy', ...right },
    { title: '' },
  ];
  const rows = verdicts.map(({ name, tokens, positions, maxError, cosine, greedy, passed }) => [
    name,
    formatCount(tokens),
    plural(positions, 'position'),
    formatTiny(maxError),
    cosine.toFixed(6),
    describeGreedy(greedy),
    passed ? 'PASS' : 'FAIL',
  ]);
  return formatTable(columns, rows);
}

function describeBatches(batches: readonly BatchVerdict[]): string {
  const columns = [
    { title: 'batch', ...right },
    { title: 'greedy', ...right },
    { title: 'recorded and eager' },
    { title: '' },
  ];
  const rows = batches.map(({ batch, greedy, sameBits, passed }) => [
    formatCount(batch),
    describeGreedy(greedy),
    sameBits ? 'same bits' : 'other bits',
    passed ? 'PASS' : 'FAIL',
  ]);
  return formatTable(columns, rows);
}

function describePaths(paths: readonly PathVerdict[]): string {
  const columns = [{ title: 'path' }, { title: 'greedy', ...right }, { title: '' }, { title: '' }];
  const rows = paths.map(({ path, greedy, about, problem, passed }) => [
    path,
    describeGreedy(greedy),
    problem ?? about,
    passed ? 'PASS' : 'FAIL',
  ]);
  return formatTable(columns, rows);
}

function describeGreedy({ equal, expected }: GreedyComparison): string {
  return expected === 0 ? '-' : `${equal} of ${expected}`;
}
