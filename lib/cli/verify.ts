import { Option, type Command } from 'commander';

import type { LanguageModel } from '../language-model';
import { compareGreedy, compareLogits, type GreedyComparison } from './compare';
import { BadResult, type Context } from './context';
import { readExpected, type ExpectedPrompt } from './expected';
import { formatCount, formatTable, formatTiny, plural } from './format';
import { withModel } from './open-model';
import { addLoadFlags, readLoadOptions, realNumber, type LoadFlags } from './options';
import { startProgress } from './progress';

type Metric = 'error' | 'cosine';

interface VerifyFlags extends LoadFlags {
  metric: Metric | 'auto';
  tolerance?: number;
  margin?: number;
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

const examples = `
DIR/expected.safetensors holds, for each prompt NAME, what another implementation computed:
NAME.input_ids, NAME.positions, NAME.logits and, if known, NAME.greedy (the likeliest tokens).

error is the largest difference of a logit, as a fraction of the logits' standard deviation.
Greedy tokens must be equal up to the first one that won by no more than --margin.
A mismatch gives exit code 1.

Examples:
  loza verify models/loza-tiny
  loza verify test/golden/longcat-full --tolerance 1e-4
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
    );
  addLoadFlags(command)
    .addHelpText('after', examples)
    .action((dir: string, flags: VerifyFlags) => verify(dir, flags, context));
}

async function verify(dir: string, flags: VerifyFlags, context: Context): Promise<void> {
  const prompts = await readExpected(dir);
  await withModel(dir, await readLoadOptions(dir, flags), context, async (model) => {
    const { device, dtype } = model.info;
    const metric = flags.metric !== 'auto' ? flags.metric : dtype === 'float32' ? 'error' : 'cosine';
    const tolerance = flags.tolerance ?? defaultTolerance[metric];
    const limits = { metric, tolerance, margin: flags.margin ?? defaultMargin[metric] };
    const verdicts: PromptVerdict[] = [];
    for (const prompt of prompts) {
      verdicts.push(await checkPrompt(model, prompt, limits, context));
    }
    const failed = verdicts.filter(({ passed }) => !passed).length;
    if (context.json) {
      const passed = failed === 0;
      context.printJson({ dir, device, dtype, ...limits, prompts: verdicts, passed });
    } else {
      context.print(describe(verdicts, limits, `${device}, ${dtype}`));
    }
    if (failed > 0) {
      const which = `${failed} of ${plural(verdicts.length, 'prompt')}`;
      throw new BadResult(`${which} of ${dir} did not give what was expected`);
    }
  });
}

async function checkPrompt(
  model: LanguageModel,
  prompt: ExpectedPrompt,
  limits: { metric: Metric; tolerance: number; margin: number },
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
  verdicts: readonly PromptVerdict[],
  { metric, tolerance, margin }: { metric: Metric; tolerance: number; margin: number },
  where: string,
): string {
  const right = { align: 'right' } as const;
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
    greedy.expected === 0 ? '-' : `${greedy.equal} of ${greedy.expected}`,
    passed ? 'PASS' : 'FAIL',
  ]);
  const limit = metric === 'error' ? `error up to ${tolerance}` : `cosine from ${1 - tolerance}`;
  const passed = verdicts.every((verdict) => verdict.passed);
  const rule = `allowed: ${limit}; greedy tokens that won by more than ${margin} equal; ${where}`;
  return `${formatTable(columns, rows)}\n\n${passed ? 'PASS' : 'FAIL'}  ${rule}`;
}
