import { readFile, writeFile } from 'node:fs/promises';
import { Argument, InvalidArgumentError, Option, type Command } from 'commander';

import { parseCounts } from '../bench/grammar';
import { LozaError } from '../errors';
import { armNames } from '../eval/arms';
import { evaluate, type EvalResult } from '../eval/evaluate';
import { drawHeatMap } from '../eval/heat-map';
import type { EvalOptions } from '../eval/options';
import { describeEval, formatCellsCsv } from '../eval/report';
import { tasks, type TaskName } from '../eval/tasks';
import { bundledModel } from './build-info';
import type { Context } from './context';
import { addLoadFlags, listOf, readLoadOptions, wholeNumber, type LoadFlags } from './options';
import { startProgress } from './progress';

interface EvalFlags extends Omit<LoadFlags, 'attention'> {
  tasks: TaskName[];
  lengths: number[];
  depths?: number[];
  samples: number;
  windows: number;
  attention?: string[];
  haystack?: string;
  seed: number;
  svg?: string;
  output: 'md' | 'json' | 'jsonl' | 'csv';
}

const taskNames = Object.keys(tasks) as TaskName[];

const examples = `
Tasks:
${taskNames.map((name) => `  ${name.padEnd(12)}${tasks[name].description}`).join('\n')}

Lengths are tokens of prompt and answer, as lists and ranges (4K or 1K-8K*2). All arms get the same
prompts, which --seed, the text and the tokenizer decide. Arms of --attention: full (none streams),
loza (as the config says), even and odd (interleaved), streaming (all), or digits, 1 = streams.
-o jsonl prints every answer, the others the shares with their 95 % confidence intervals.

Examples:
  loza eval models/loza-tiny --tasks passkey --lengths 1K-4K*2 --svg passkeys.svg
  loza eval DIR --tasks multikey,alias,lines --samples 500 --attention full,loza,even,odd
  loza eval DIR --lengths 32K --yarn-factor 4 --haystack book.txt --windows 8 -o json > eval.json`;

export function registerEval(program: Command, context: Context): void {
  const command = program
    .command('eval')
    .description('Measures what a model finds in long prompts, attention patterns side by side.')
    .addArgument(
      new Argument('[dir]', 'checkpoint folder').default(bundledModel, 'the bundled loza-tiny'),
    )
    .addOption(
      new Option('--tasks <list>', 'see below')
        .argParser(listOf(parseTask))
        .default(taskNames, 'all'),
    )
    .addOption(
      new Option('-l, --lengths <n,...>', 'tokens of prompt and answer')
        .argParser(parseCounts)
        .default(parseCounts('1K-4K*2'), '1K-4K*2'),
    )
    .addOption(
      new Option('--depths <list>', 'of pass keys: 0.25,0.5, or 5 for 5 even ones').argParser(
        parseDepths,
      ),
    )
    .option(
      '-n, --samples <n>',
      'prompts of each task and length, and depth of pass keys',
      wholeNumber(1, 1e6),
      10,
    )
    .option('--windows <n>', 'windows of text for perplexity by position', wholeNumber(0, 1e6), 0)
    .addOption(
      new Option(
        '--attention <list>',
        'arms (default full, and loza where it is defined)',
      ).argParser(listOf(parseArm)),
    )
    .option('--haystack <file>', 'text to hide needles in (default: a short speech)')
    .option('--seed <n>', 'of the prompts', wholeNumber(0, 2 ** 53 - 1), 0)
    .option('--svg <file>', 'draw pass keys by depth and length')
    .addOption(
      new Option('-o, --output <format>', 'md is Markdown')
        .choices(['md', 'json', 'jsonl', 'csv'])
        .default('md'),
    );
  addLoadFlags(command, ['device', 'dtype', 'maxTokens', 'yarnFactor', 'chunkTokens'])
    .addHelpText('after', examples)
    .action((dir: string, flags: EvalFlags) => runEval(dir, flags, context));
}

async function runEval(dir: string, flags: EvalFlags, context: Context): Promise<void> {
  if (context.json) flags.output = 'json';
  context.json = flags.output !== 'md';
  const { lengths, depths, samples, windows, attention, seed } = flags;
  const haystack = flags.haystack === undefined ? undefined : await readText(flags.haystack);
  const load = await readLoad(dir, flags);
  const progress = startProgress(context, 'answering', 'cases');
  let result: EvalResult;
  try {
    result = await evaluate(dir, {
      ...{ tasks: flags.tasks, lengths, depths, samples, windows, attention, haystack, seed, load },
      signal: context.signal,
      onProgress: ({ done, total }) => progress.update(done, total),
    });
  } finally {
    progress.stop();
  }
  if (flags.svg !== undefined) await writeFile(flags.svg, drawHeatMap(result) ?? noPassKeys());
  print(result, flags.output, context);
}

/** The load options of all arms: each arm has an attention of its own. */
async function readLoad(dir: string, flags: EvalFlags): Promise<NonNullable<EvalOptions['load']>> {
  const { device, dtype, maxTokens, yarnFactor, chunkTokens } = flags;
  const options = await readLoadOptions(dir, { device, dtype, maxTokens, yarnFactor, chunkTokens });
  delete options.attention;
  return options;
}

function print(result: EvalResult, format: EvalFlags['output'], context: Context): void {
  if (format === 'md') return context.print(describeEval(result));
  if (format === 'csv') return context.print(formatCellsCsv(result));
  if (format === 'jsonl') {
    for (const answer of result.arms.flatMap(({ answers }) => answers)) context.printJson(answer);
    return;
  }
  const arms = result.arms.map(({ name, layerType, device, dtype, cells, perplexity }) => {
    return { name, layerType, device, dtype, cells, perplexity };
  });
  context.printJson({ ...result, arms });
}

async function readText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    const hint = 'Name a text file with --haystack, or leave it out';
    throw new LozaError('ERR_LOZA_NOT_FOUND', `${file} cannot be read`, {
      value: file,
      hint,
      cause,
    });
  }
}

function noPassKeys(): never {
  const hint = 'Add passkey to --tasks, or leave --svg out';
  throw new LozaError('ERR_LOZA_INVALID_ARG', '--svg draws pass keys, but none were asked', {
    hint,
  });
}

function parseTask(text: string): TaskName {
  const found = taskNames.find((name) => name === text);
  if (found !== undefined) return found;
  throw new InvalidArgumentError(`It must be of ${taskNames.join(', ')}.`);
}

function parseArm(text: string): string {
  if ((armNames as readonly string[]).includes(text) || /^[01]+$/.test(text)) return text;
  throw new InvalidArgumentError(`It must be of ${armNames.join(', ')}, or digits as 10111000.`);
}

/** '5' gives 0, 0.25, 0.5, 0.75 and 1. */
function parseDepths(text: string): number[] {
  const values = text.split(',').map((part) => (part.trim() === '' ? NaN : Number(part)));
  const [count] = values as [number];
  if (values.length === 1 && Number.isInteger(count) && count >= 2 && count <= 1001) {
    return Array.from({ length: count }, (_, i) => i / (count - 1));
  }
  if (values.every((value) => value >= 0 && value <= 1)) return values;
  throw new InvalidArgumentError('They must be numbers of 0 to 1, or how many there are.');
}
