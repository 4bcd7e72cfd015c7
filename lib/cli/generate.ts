import { createReadStream } from 'node:fs';
import { addAbortSignal, type Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import type { Command } from 'commander';

import { fileError } from '../checkpoint/files';
import type { GeneratePart, GenerateResult } from '../engine/generate-job';
import type { Generation } from '../engine/generation';
import type { LanguageModel } from '../language-model';
import type { Prompt } from '../prompt';
import { maxSamples, type GenerateOptions } from '../runner/sampling';
import type { Context } from './context';
import { formatBytes, formatCount, formatDuration, formatPercent, formatRate } from './format';
import { withModel } from './open-model';
import {
  addLoadFlags,
  addSamplingFlags,
  readGenerateOptions,
  readLoadOptions,
  usageError,
  wholeNumber,
  type LoadFlags,
  type SamplingFlags,
} from './options';
import { startProgress } from './progress';

interface GenerateFlags extends LoadFlags, SamplingFlags {
  file?: string;
  chat?: boolean;
  system?: string;
  logprobs?: number | true;
  samples: number;
}

const examples = `
The prompt is an argument, a --file, or standard input (one newline at its end is left out).
The text goes to standard output; progress and a line of figures to a terminal.

Examples:
  loza generate models/loza-tiny "Fellow-Citizens of the Senate" -n 40
  cat report.txt | loza generate DIR                    read the prompt from a pipe
  loza generate DIR --chat "What is LoZA?"              ask, by the model's chat template
  loza generate DIR "Once" -t 0.8 --top-p 0.95 --seed 7  varied, but the same each time
  loza generate DIR "Once" -t 0.8 --samples 3           three texts; the prompt is read once
  loza generate DIR -f book.txt --attention full        no streaming, to compare
  loza generate DIR "Once" --json | jq .timings         one object at the end`;

export function registerGenerate(program: Command, context: Context): void {
  const command = program
    .command('generate')
    .description('Continues a text.')
    .argument('<dir>', 'checkpoint folder')
    .argument('[prompt]', 'text to continue; - or nothing reads standard input')
    .option('-f, --file <path>', 'read the prompt from a file')
    .option('--chat', 'take the prompt as a message of the user, and answer it')
    .option('--system <text>', 'instructions before the message; needs --chat');
  addSamplingFlags(command)
    .option(
      '--samples <n>',
      'texts to write, whole, with seeds one apart; they read the prompt together (default 1)',
      wholeNumber(1, maxSamples),
      1,
    )
    .option(
      '--logprobs [n]',
      'with --json: log probabilities of the tokens, and of n alternatives',
      wholeNumber(0, 20),
    );
  addLoadFlags(command)
    .addHelpText('after', examples)
    .action((dir: string, prompt: string | undefined, flags: GenerateFlags) =>
      generate(dir, prompt, flags, context),
    );
}

async function generate(
  dir: string,
  argument: string | undefined,
  flags: GenerateFlags,
  context: Context,
): Promise<void> {
  if (flags.system !== undefined && flags.chat !== true) {
    throw usageError('--system needs --chat', 'A plain prompt has no system message');
  }
  if (flags.logprobs !== undefined && !context.json) throw usageError('--logprobs needs --json');
  const prompt = asPrompt(await readPrompt(argument, flags.file, context.signal), flags);
  await withModel(dir, await readLoadOptions(dir, flags), context, async (model) => {
    const { samples: n, logprobs } = flags;
    const options = { ...readGenerateOptions(flags), n, logprobs };
    if (context.json) return printObject(model, prompt, options, context);
    if (n > 1) return printSamples(model, prompt, options, context);
    const begin = (more: GenerateOptions) => model.generate(prompt, { ...options, ...more });
    const result = await streamText(begin, context);
    context.note(describeRun(result, model));
  });
}

/** Writes a text as it comes and returns the result; the bar shows how far the prompt is read. */
export async function streamText(
  begin: (options: Pick<GenerateOptions, 'signal' | 'onProgress'>) => Generation,
  context: Context,
  signal = context.signal,
): Promise<GenerateResult> {
  const progress = startProgress(context, 'reading');
  const generation = begin({
    signal,
    onProgress: ({ phase, done, total, leftMs }) => {
      if (phase === 'prefill' && done < total) progress.update(done, total, leftMs);
    },
  });
  let endsLine = false;
  let wrote = false;
  try {
    for await (const part of generation) {
      progress.stop();
      process.stdout.write(part.text);
      if (part.text !== '') endsLine = part.text.endsWith('\n');
      wrote = true;
    }
  } finally {
    progress.stop();
    if (wrote && !endsLine) process.stdout.write('\n');
  }
  return generation.result();
}

/** Several texts, when all are whole. */
async function printSamples(
  model: LanguageModel,
  prompt: Prompt,
  options: GenerateOptions & { n: number },
  context: Context,
): Promise<void> {
  const progress = startProgress(context, 'writing');
  const { signal } = context;
  let written = 0;
  const onProgress: GenerateOptions['onProgress'] = ({ phase, total }) => {
    if (phase === 'decode') progress.update(++written, total * options.n);
  };
  let results: readonly GenerateResult[];
  try {
    results = await model.generate(prompt, { ...options, signal, onProgress }).results();
  } finally {
    progress.stop();
  }
  results.forEach(({ text, seed }, i) => {
    context.print(`[${i + 1} · seed ${seed}]\n${text.replace(/\n$/, '')}\n`);
  });
  for (const result of results) context.note(describeRun(result, model));
  if (new Set(results.map(({ text }) => text)).size === 1) {
    context.note('All texts are the same; --temperature 0.8 makes them differ.');
  }
}

/** The figures of a run, on one line. */
export function describeRun(result: GenerateResult, model: LanguageModel): string {
  const { usage, timings, kv, seed, finishReason } = result;
  const cached =
    usage.cachedTokens > 0 ? ` (${formatCount(usage.cachedTokens)} of them cached)` : '';
  const read = `read ${formatCount(usage.promptTokens)} tokens${cached} in ${formatDuration(timings.firstTokenMs)}`;
  const wrote = `wrote ${formatCount(usage.completionTokens)} (${finishReason}) at ${formatRate(timings.decodeTokensPerSecond)}/s`;
  const saved =
    kv.residentBytes < kv.fullBytes ? ` (${formatPercent(kv.residentBytes / kv.fullBytes)})` : '';
  const held = `KV ${formatBytes(kv.residentBytes)}${saved}`;
  return `[${read} · ${wrote} · ${held} · ${model.info.device} · seed ${seed}]`;
}

/** A result as JSON can hold it. */
export function resultObject(result: GenerateResult): Record<string, unknown> {
  const { text, tokens, finishReason, usage, timings, kv, seed, logprobs } = result;
  const chosen = logprobs === undefined ? {} : { logprobs: Array.from(logprobs) };
  return { text, tokens: Array.from(tokens), finishReason, usage, timings, kv, seed, ...chosen };
}

/** One text is one object, several are those in a list. */
async function printObject(
  model: LanguageModel,
  prompt: Prompt,
  options: GenerateOptions & { n: number },
  context: Context,
): Promise<void> {
  const alternatives: GeneratePart['alternatives'][][] = Array.from(
    { length: options.n },
    () => [],
  );
  const generation = model.generate(prompt, { ...options, signal: context.signal });
  for await (const part of generation) alternatives[part.sample ?? 0]?.push(part.alternatives);
  const wanted = typeof options.logprobs === 'number' && options.logprobs > 0;
  const samples = (await generation.results()).map((result, i) => ({
    ...resultObject(result),
    ...(wanted ? { alternatives: alternatives[i] } : {}),
  }));
  context.printJson(options.n > 1 ? { samples } : (samples[0] ?? {}));
}

function asPrompt(content: string, { chat, system }: GenerateFlags): Prompt {
  if (chat !== true) return content;
  const user = { role: 'user', content } as const;
  return system === undefined ? [user] : [{ role: 'system', content: system }, user];
}

async function readPrompt(
  argument: string | undefined,
  file: string | undefined,
  signal: AbortSignal,
): Promise<string> {
  if (argument !== undefined && file !== undefined) {
    throw usageError('The prompt must be given once: as an argument or with --file');
  }
  if (argument !== undefined && argument !== '-') return notEmpty(argument);
  if (file !== undefined && file !== '-') {
    return notEmpty(await readText(createReadStream(file), file, signal));
  }
  if (process.stdin.isTTY && argument === undefined && file === undefined) {
    throw usageError(
      'There is no prompt',
      'Give it as an argument, with --file, or on standard input',
    );
  }
  return notEmpty(await readText(process.stdin, 'standard input', signal));
}

async function readText(from: Readable, name: string, signal: AbortSignal): Promise<string> {
  try {
    return (await text(addAbortSignal(signal, from))).replace(/\r?\n$/, '');
  } catch (error) {
    throw fileError(error, name);
  }
}

function notEmpty(prompt: string): string {
  if (prompt !== '') return prompt;
  throw usageError('The prompt is empty', 'Give it at least one character');
}
