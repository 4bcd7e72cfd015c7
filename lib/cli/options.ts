import { InvalidArgumentError, Option, type Command } from 'commander';

import type { AttentionOption } from '../checkpoint/streaming-config';
import { LozaError } from '../errors';
import { planLoad, type LoadPlan } from '../load-model';
import { resolveLoadOptions, type LoadOptions } from '../load-options';
import { presets } from '../model/presets';
import type { GenerateOptions } from '../runner/sampling';

/** The flags that say how to load a model. */
export interface LoadFlags {
  device?: 'auto' | 'cpu' | 'cuda' | undefined;
  attention?: string | undefined;
  sinkBlocks?: number | undefined;
  localBlocks?: number | undefined;
  dtype?: 'auto' | 'float32' | 'bfloat16' | undefined;
  kvDtype?: 'auto' | 'fp8' | undefined;
  maxTokens?: number | undefined;
  yarnFactor?: number | undefined;
  stepTokens?: number | undefined;
  chunkTokens?: number | undefined;
  hostTokens?: number | undefined;
  prefixCache?: boolean | undefined;
  loadFormat?: 'auto' | 'dummy' | undefined;
  layers?: number | undefined;
  experts?: number | undefined;
  zeroExperts?: number | undefined;
}

/** The flags that say how to continue a text; the names are those of `GenerateOptions`. */
export interface SamplingFlags {
  maxNewTokens?: number | undefined;
  temperature?: number | undefined;
  topK?: number | undefined;
  topP?: number | undefined;
  minP?: number | undefined;
  repetitionPenalty?: number | undefined;
  seed?: number | undefined;
  stop?: string[] | undefined;
  stopTokenId?: number[] | undefined;
  ignoreEos?: boolean | undefined;
}

const positive = wholeNumber(1, 2 ** 30);

const loadFlags: Record<keyof LoadFlags, () => Option> = {
  device: () =>
    new Option('--device <name>', 'auto takes a GPU when there is one').choices([
      'auto',
      'cpu',
      'cuda',
    ]),
  attention: () =>
    new Option(
      '--attention <auto|full|pattern>',
      'auto: as the checkpoint says; full: none streams; or one digit for each, 1 = streams',
    ).argParser(parseAttention),
  sinkBlocks: () =>
    new Option(
      '--sink-blocks <n>',
      'blocks of 128 tokens that streaming attentions keep at the start',
    ).argParser(positive),
  localBlocks: () =>
    new Option('--local-blocks <n>', 'blocks that they keep at the end').argParser(positive),
  dtype: () =>
    new Option(
      '--dtype <type>',
      'of activations and KV cache; on the CPU of the cache alone',
    ).choices(['auto', 'float32', 'bfloat16']),
  kvDtype: () =>
    new Option('--kv-dtype <type>', 'fp8 keeps about twice as many tokens in the memory').choices([
      'auto',
      'fp8',
    ]),
  maxTokens: () =>
    new Option('--max-tokens <n>', 'tokens that the KV cache has room for').argParser(positive),
  yarnFactor: () =>
    new Option('--yarn-factor <x>', "stretch the model's positions with YaRN").argParser(
      realNumber(1, 2 ** 20),
    ),
  stepTokens: () =>
    new Option(
      '--step-tokens <n>',
      'new tokens of a step, all sequences together (default 8192; 512 on the CPU)',
    ).argParser(wholeNumber(1, 2 ** 20)),
  chunkTokens: () =>
    new Option(
      '--chunk-tokens <n>',
      'tokens of a prompt read in one step (default 8192; 512 on the CPU)',
    ).argParser(wholeNumber(1, 2 ** 20)),
  prefixCache: () => new Option('--no-prefix-cache', 'read every prompt from its first token on'),
  hostTokens: () =>
    new Option(
      '--host-tokens <n>',
      "tokens of KV cache that go to the host's memory rather than be lost (default 0)",
    ).argParser(wholeNumber(0, 2 ** 30)),
  loadFormat: () =>
    new Option(
      '--load-format <name>',
      `dummy: random weights; only config.json is read, or a preset (${Object.keys(presets).join(', ')})`,
    ).choices(['auto', 'dummy']),
  layers: () =>
    new Option('--layers <n>', "layers instead of the config's, with dummy weights").argParser(
      positive,
    ),
  experts: () => new Option('--experts <n>', 'likewise, routed experts').argParser(positive),
  zeroExperts: () =>
    new Option('--zero-experts <n>', 'likewise, zero experts').argParser(wholeNumber(0, 4096)),
};

/** The flags of dummy weights. */
export const dummyFlags = ['loadFormat', 'layers', 'experts', 'zeroExperts'] as const;

/** Adds the load flags, all of them or those named. */
export function addLoadFlags(
  command: Command,
  names = Object.keys(loadFlags) as (keyof LoadFlags)[],
): Command {
  for (const name of names) command.addOption(loadFlags[name]());
  return command;
}

export function addSamplingFlags(command: Command): Command {
  const fraction = realNumber(0, 1);
  return command
    .option('-n, --max-new-tokens <n>', 'most tokens to write (default 256)', positive)
    .option(
      '-t, --temperature <x>',
      '0 takes the likeliest token; more is more varied',
      realNumber(0, 100),
    )
    .option('--top-k <n>', 'choose among the n likeliest tokens', wholeNumber(0, 2 ** 30))
    .option('--top-p <x>', 'choose among tokens whose probabilities sum to x', fraction)
    .option('--min-p <x>', 'leave out tokens less likely than x times the likeliest', fraction)
    .option('--repetition-penalty <x>', 'above 1: repeat less', realNumber(0, 100))
    .option('--seed <n>', 'the same seed gives the same text', wholeNumber(0, 2 ** 53 - 1))
    .option('--stop <text>', 'end before this text; may be given again', collect<string>(String))
    .option(
      '--stop-token-id <id>',
      'end at this token; may be given again',
      collect(wholeNumber(0, 2 ** 31 - 1)),
    )
    .option('--ignore-eos', "go on past the checkpoint's end tokens");
}

/** Which attentions stream. Reads the checkpoint only where block counts change its own pattern. */
async function readAttention(dir: string, flags: LoadFlags): Promise<AttentionOption> {
  const { attention = 'auto', sinkBlocks, localBlocks } = flags;
  const blocks = { sinkBlocks, localBlocks };
  if (attention !== 'auto' && attention !== 'full') return { layerType: attention, ...blocks };
  if (sinkBlocks === undefined && localBlocks === undefined) return attention;
  const { loadFormat, layers, experts, zeroExperts } = flags;
  const planFlags = { attention, loadFormat, layers, experts, zeroExperts };
  const pattern = attention === 'full' ? undefined : (await planFromFlags(dir, planFlags)).pattern;
  if (pattern === undefined) {
    const hint = 'Name the streaming ones with --attention, a digit for each: 1 streams, 0 is full';
    throw usageError('--sink-blocks and --local-blocks have no effect: no attention streams', hint);
  }
  return { layerType: pattern.layerType, ...blocks };
}

export async function readLoadOptions(dir: string, flags: LoadFlags): Promise<LoadOptions> {
  const { device, dtype, kvDtype, yarnFactor, stepTokens, chunkTokens } = flags;
  const { maxTokens, prefixCache, hostTokens } = flags;
  const attention = await readAttention(dir, flags);
  return {
    ...{ device, dtype, kvDtype, stepTokens, chunkTokens, maxTokens, prefixCache, hostTokens },
    ...{ attention, rope: { yarnFactor }, ...readFormat(flags) },
  };
}

function readFormat({ loadFormat, layers, experts, zeroExperts }: LoadFlags) {
  if (loadFormat !== 'dummy' && [layers, experts, zeroExperts].some((n) => n !== undefined)) {
    throw usageError('--layers, --experts and --zero-experts need --load-format dummy');
  }
  return { loadFormat, configOverrides: { layers, experts, zeroExperts } };
}

/** The checkpoint's config and headers, checked; no weights, no device. */
export async function planFromFlags(
  dir: string,
  flags: LoadFlags,
  signal?: AbortSignal,
): Promise<LoadPlan> {
  const attention = await readAttention(dir, flags);
  const { yarnFactor } = flags;
  const { rope, loadFormat, configOverrides } = resolveLoadOptions({
    rope: { yarnFactor },
    ...readFormat(flags),
  });
  return planLoad(dir, { attention, rope, signal, loadFormat, configOverrides });
}

export function readGenerateOptions(flags: SamplingFlags): GenerateOptions {
  const { maxNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed } = flags;
  return {
    ...{ maxNewTokens, temperature, topK, topP, minP, repetitionPenalty, seed },
    stop: flags.stop,
    stopTokenIds: flags.stopTokenId,
    ignoreEos: flags.ignoreEos,
  };
}

/** The error for flags and arguments that cannot be what was meant. */
export function usageError(problem: string, hint?: string): LozaError {
  return new LozaError('ERR_LOZA_INVALID_ARG', problem, hint === undefined ? {} : { hint });
}

/** A parser of integers in a range, for commander. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^[+-]?\d+$/.test(text) ? Number(text) : NaN;
    if (value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number of ${min} to ${max}.`);
  };
}

/** A parser of numbers in a range, for commander. */
export function realNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? NaN : Number(text);
    if (value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a number of ${min} to ${max}.`);
  };
}

/** A parser that says what is wrong with a LozaError, for commander, which names the option. */
export function checked<T>(parse: (text: string) => T): (text: string) => T {
  return (text) => {
    try {
      return parse(text);
    } catch (error) {
      throw LozaError.isInstance(error) ? new InvalidArgumentError(`${error.message}.`) : error;
    }
  };
}

/** A parser of lists such as 512,4096, for commander. */
export function listOf<T>(parse: (text: string) => T): (text: string) => T[] {
  return (text) => text.split(',').map((item) => parse(item.trim()));
}

function parseAttention(text: string): string {
  if (text === 'auto' || text === 'full' || /^[01]+$/.test(text)) return text;
  throw new InvalidArgumentError('It must be auto, full or a pattern of 0 and 1, as 10111000.');
}

function collect<T>(parse: (text: string) => T): (text: string, before: T[] | undefined) => T[] {
  return (text, before = []) => [...before, parse(text)];
}
